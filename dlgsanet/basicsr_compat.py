"""What BasicSR 1.4.2 (2022) needs on current versions of Python, PyTorch, torchvision and OpenCV.

Import this before BasicSR. Each change is made only where it is needed. BasicSR's own `train_pipeline` and
`parse_options` are not used here, so their faults are not fixed: `exec` on ``--force_yml``, a call of
`torch.cuda.current_device()` when resuming without a GPU, a division by the number of GPUs in `init_dist`.
`dlgsanet.options` sets ``num_gpu: 0`` where there is no GPU, which BasicSR's models follow.
"""

import importlib
import os
import sys
import types

import torch

from dlgsanet.errors import UserError


def _load_weights_only() -> None:
    # torch.load unpickles arbitrary objects by default before torch 2.6; BasicSR's models call it without
    # weights_only. https://pytorch.org/docs/stable/generated/torch.load.html
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def _check_opencv() -> None:
    # opencv-python links libGL, which servers and containers often lack. https://github.com/opencv/opencv-python/issues/370
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"OpenCV does not load ({error}); install libGL (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0) or "
            "replace the package: pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error


# Kept alive: a torch library removes its definitions when it is collected.
_torchvision_operators: list[torch.library.Library] = []


def _import_torchvision() -> None:
    # torchvision's compiled operators do not load with a torch of another build, such as a CPU torch. Its import
    # then fails where it describes them. They are not used here: once their names are declared, the import succeeds.
    # https://github.com/pytorch/pytorch/issues/122494
    declarations = {
        "torchvision::nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "torchvision::qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = next((name for name in declarations if name in str(error)), None)
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(declarations.pop(missing))
            _torchvision_operators.append(library)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


def _restore_functional_tensor() -> None:
    # basicsr.data.degradations imports it; torchvision 0.17 removed it. https://github.com/XPixelGroup/BasicSR/issues/663
    name = "torchvision.transforms.functional_tensor"
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.rgb_to_grayscale = importlib.import_module(  # type: ignore[attr-defined]
            "torchvision.transforms.functional"
        ).rgb_to_grayscale
        sys.modules[name] = module


def _restore_distutils() -> None:
    # basicsr.archs.arch_util compares torchvision's version with distutils, which Python 3.12 removed. setuptools
    # may provide it. https://peps.python.org/pep-0632/
    try:
        importlib.import_module("distutils.version")
    except ImportError:
        module = types.ModuleType("distutils.version")
        module.LooseVersion = importlib.import_module("packaging.version").Version  # type: ignore[attr-defined]
        package = types.ModuleType("distutils")
        package.version = module  # type: ignore[attr-defined]
        sys.modules["distutils"] = package
        sys.modules["distutils.version"] = module


_load_weights_only()
_check_opencv()
_import_torchvision()
_restore_functional_tensor()
_restore_distutils()
