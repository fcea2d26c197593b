"""Export to ONNX and `torch.export`, for images of every size, checked by running what was written."""

import importlib.util
import io
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.portable import PortableDLGSANet
from dlgsanet.archs.sparse_gsa import tlc_window
from dlgsanet.errors import ArgumentError, UserError, unknown
from dlgsanet.files import check_can_write, write_whole

OPSET = 18
LARGEST_SIDE = 65536
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}  # of an output value, against PyTorch in float32

Run = Callable[[np.ndarray], np.ndarray]
Stage = Callable[[str], AbstractContextManager[None]]


def export(
    network: DLGSANet,
    path: Path,
    precision: str = "fp32",
    metadata: dict[str, str] | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> float:
    """Write a network for programs that do not have this project, and check what was written by running it.

    The input ``image`` is float32 [1, in_chans, H, W] in [0, 1], H and W from 1 up. The output ``enlarged`` is float32
    [1, in_chans, upscale * H, upscale * W], not clipped.

    Args:
        network: float32, on the CPU, in evaluation mode.
        path: ends in .onnx (opset 18, no custom operators) or .pt2 (`torch.export`).
        precision: ``fp32``, or ``fp16``: weights and features in float16, norms and similarities in float32.
        metadata: kept in an ONNX file as its properties.
        stage: called with the name of each stage of the work; the context manager that it returns surrounds the stage.

    Returns:
        The largest difference from PyTorch over `checked_sizes`.

    Raises:
        UserError: another extension, a file that cannot be written, a missing package, or a result that differs from
            PyTorch's by more than 1e-4 (fp16: 5e-3). Nothing is written then.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ArgumentError("output", f"{path}: the name must end in .onnx or .pt2")
    if precision not in TOLERANCE:
        raise ArgumentError("precision", unknown("precision", precision, TOLERANCE))
    check_can_write(path)
    if path.suffix == ".onnx":
        _require_packages()
    portable = PortableDLGSANet(deepcopy(network).half() if precision == "fp16" else network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about its own code
        with stage("tracing the network"):
            program = _trace(portable, network.shallow.weight.shape[1], tlc_window(network) or 96)
        with stage(f"writing {path.suffix[1:]}"):
            content = _onnx(program, metadata or {}) if path.suffix == ".onnx" else _pt2(program)
        with stage("loading what was written"):
            run = (_run_onnx if path.suffix == ".onnx" else _run_pt2)(content)
    with stage("comparing it with PyTorch"):
        difference = check(network, run)
    if not difference <= TOLERANCE[precision]:
        raise UserError(f"{path}: not written, its output differs from PyTorch's by {difference:.1e}")
    write_whole(path, content)
    return difference


def _trace(portable: PortableDLGSANet, channels: int, window: int) -> torch.export.ExportedProgram:
    import torch.fx.experimental._config as symbolic

    sizes = {
        2: torch.export.Dim("height", min=2, max=LARGEST_SIDE),
        3: torch.export.Dim("width", min=2, max=LARGEST_SIDE),
    }
    example = torch.rand(1, channels, 2 * window + 5, window + 3)
    # Without this, the graph would hold only for images of several windows.
    with symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # made at import
        return torch.export.export(portable, (example,), dynamic_shapes={"image": sizes}, strict=False)


def _require_packages() -> None:
    """Check before the work that the packages are installed; onnxruntime runs the file that was written."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; pip install onnx onnxscript onnxruntime")


def _onnx(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    import onnx
    import onnxscript.optimizer
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, LiftConstantsToInitializersPass

    written = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=["enlarged"],
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    assert written is not None
    # The useful part of PyTorch's `optimize`. The rest, a search for patterns, takes longer than the whole export, and
    # onnxruntime does it when it loads the file.
    onnxscript.optimizer.fold_constants(written.model)
    CommonSubexpressionEliminationPass()(written.model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(written.model)
    onnxscript.optimizer.remove_unused_nodes(written.model)
    model = written.model_proto
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def _pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _run_pt2(content: bytes) -> Run:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(image)).numpy()

    return run


def checked_sizes(window: int) -> list[tuple[int, int]]:
    """Heights and widths below, at, and several windows above the side of the TLC windows."""
    k = window
    return [(k // 2, k // 3 + 1), (k, k), (k - 1, k + 1), (2 * k + 1, k // 4 + 1), (k + 7, 3 * k + 5)]


def check(network: DLGSANet, run: Run) -> float:
    """The largest difference of ``run(image)`` from the network over `checked_sizes`, on smooth images."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for height, width in checked_sizes(tlc_window(network) or 96):
        image = _smooth_image(network.shallow.weight.shape[1], height, width, generator)
        with torch.inference_mode():
            wanted = network(image).numpy()
        difference = np.abs(run(image.numpy()) - wanted).max()
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return worst


def _smooth_image(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    noise = torch.rand(1, channels, height // 4 + 2, width // 4 + 2, generator=generator)
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
