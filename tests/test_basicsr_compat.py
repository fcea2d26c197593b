"""BasicSR 1.4.2 imports and runs with current packages, and without the old ones that it expects."""

import os
import pickle

import pytest
import torch

from tests.conftest import python

# Makes an import fail, as on a machine that lacks the module.
MISSING = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ImportError({message!r})
sys.meta_path.insert(0, Missing())
"""
REGISTERED = """
import dlgsanet.plugin
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
assert "DLGSANet" in ARCH_REGISTRY and "SwinIR" in ARCH_REGISTRY
assert "CachedPairedImageDataset" in DATASET_REGISTRY and "PairedImageDataset" in DATASET_REGISTRY
assert "DLGSANetModel" in MODEL_REGISTRY and "SRModel" in MODEL_REGISTRY
assert "FFTLoss" in LOSS_REGISTRY and "L1Loss" in LOSS_REGISTRY
"""


def test_our_classes_are_in_basicsrs_registries_even_without_distutils():
    """Python 3.12 has no distutils. setuptools, which may replace it, need not be installed."""
    missing = MISSING.format(name="distutils", message="No module named 'distutils'")
    done = python("import os; os.environ['SETUPTOOLS_USE_DISTUTILS'] = 'stdlib'\n" + missing + REGISTERED)
    assert done.returncode == 0, done.stderr


def test_opencv_without_libgl_is_reported_in_one_line():
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    missing = MISSING.format(name="cv2", message=message)
    done = python(missing + "import sys\nfrom dlgsanet.cli import run\nsys.exit(run('dlgsanet.plugin:none', []))")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "libGL" in done.stderr
    assert "opencv-python-headless" in done.stderr


class Malicious:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_checkpoints_that_would_run_code_are_refused_by_basicsrs_own_models(tmp_path):
    """BasicSR calls torch.load without weights_only; importing the plugin makes True the default."""
    import dlgsanet.plugin  # noqa: F401

    torch.save({"params": Malicious(tmp_path / "ran")}, tmp_path / "malicious.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "malicious.pth", map_location="cpu")
    assert not (tmp_path / "ran").exists()
