"""The layers on GPUs by Triton kernels, for NVIDIA, AMD and Intel GPUs.

Triton comes with PyTorch for Linux; it also needs a C compiler and Python's headers. It has been tried on NVIDIA
GPUs alone. Without gradients, the layers are those of `dlgsanet.ops.backends.torch.planar` with other steps, such
as a depth-wise filter, each one kernel. In training, each layer has kernels of its own (`training`). At first use on a
card small layers are compared with plain PyTorch, and before a layer is trained, one of its sizes. If they do not
agree, the torch backend serves.
"""

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import NO_LAYER, Backend, LayerFunctions, choice, reference, verdicts
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import planar, unsuited
from dlgsanet.ops.backends.verdicts import (
    TENSOR_CORE_TOLERANCE,
    TOLERANCE,
    Kernels,
    Verdict,
    largest_difference,
    warn,
)
from dlgsanet.ops.records import (
    OPERATIONS,
    ChannelAttention,
    Conv3x3,
    GatedFeedForward,
    Layer,
    LocalAttention,
    Record,
    map_tensors,
    tensors_of,
)
from dlgsanet.ops.tf32 import allowed_in_matrix_products

DEVICES = ("cuda", "xpu")
KEPT = planar.Kept(hidden=4, sums=0, images=1)


def why_not(record: Record, x: Tensor, training: bool) -> str | None:
    if x.device.type not in DEVICES:
        return NO_LAYER
    if reason := unsuited(record, x, training):
        return reason
    if x.dtype not in TOLERANCE:
        return f"it has no kernels for {x.dtype}"
    if training and x.dtype == torch.float64 and not isinstance(record, Conv3x3):
        return "it has no gradients in float64"
    if reason := refused(x.dtype, x.device):
        return reason
    if isinstance(record, Conv3x3):
        return None if _steps().takes_convolution(record, x) else NO_LAYER
    return _refused_in_training(record, x) if training else None


def timed(layer: Record, x: Tensor) -> tuple[object, ...] | None:
    """Only the convolution is timed as a whole; the other layers choose between ways of their steps."""
    return _steps().convolution_timed(layer, x) if isinstance(layer, Conv3x3) else None


@functools.cache
def refused(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels are not used on a device, or None; cheap after their first use."""
    if _triton() is None:
        return "Triton is not installed"
    return warn(examine(dtype, device)).reason


def examine(dtype: torch.dtype, device: torch.device, again: bool = False) -> Verdict:
    """The kept result of the first use on this card; else, or again, try the kernels now.

    Raises:
        RuntimeError: a CUDA graph is captured.
    """
    return verdicts.examine(_kernels("", dtype, device), lambda: _difference(dtype, device), again)


def _kernels(what: str, dtype: torch.dtype, device: torch.device, *key: object) -> Kernels:
    """What is tried together. Matrix products between the kernels may be in TF32."""
    if device.type == "cuda":
        cuda_modules.require_no_capture()
    name = f"Triton kernels{what} in {str(dtype).removeprefix('torch.')}"
    most = TENSOR_CORE_TOLERANCE if dtype == torch.float32 else TOLERANCE[dtype]
    triton = _triton()
    assert triton is not None
    sources = (*sorted(Path(__file__).parent.glob("*.py")), Path(planar.__file__), triton)
    return Kernels(name, device, most, sources, ("triton", dtype, *_host_compiler(), *key))


def _triton() -> Path | None:
    """The file of Triton that has its version, or None. The distribution has another name with PyTorch for AMD's and
    Intel's GPUs, such as pytorch-triton-rocm."""
    spec = importlib.util.find_spec("triton")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _refused_in_training(layer: Record, x: Tensor) -> str | None:
    if reason := _training().refuses(layer, x):
        return reason
    fields = tuple(field.shape if isinstance(field, Tensor) else field for field in layer)
    kind: Any = type(layer)
    return refused_sizes(kind, fields, x.dtype, x.device, allowed_in_matrix_products())


@functools.cache
def refused_sizes(
    kind: Any, fields: tuple[Any, ...], dtype: torch.dtype, device: torch.device, tf32: bool
) -> str | None:
    """Why layers of these sizes are not trained by the kernels, which are compiled for the sizes, or None.

    fields: of the record, with shapes in place of tensors.
    """
    kernels = _kernels(f" for training {OPERATIONS[kind]}", dtype, device, fields, tf32)._replace(by_doctor=False)
    return warn(verdicts.examine(kernels, lambda: _difference_in_training(kind, fields, dtype, device))).reason


def _host_compiler() -> tuple[str | None, bool]:
    """The C compiler that Triton calls at first use, and whether there are Python's headers, which it needs."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler, Path(sysconfig.get_path("include"), "Python.h").is_file()


def _difference(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference from plain PyTorch in float64, relative to the largest value, of results and gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)

    worst = 0.0
    with torch.inference_mode(False), torch.enable_grad(), autocast.off(device.type), choice.untimed():
        x, norm = random(1, 4, 18, 21), (random(4), random(4))
        feed_forward = GatedFeedForward(*norm, random(4, 4, 1, 1), random(4, 1, 3, 3), random(4, 2, 1, 1))
        weights = random(12, 4, 1, 1), random(12, 1, 3, 3), random(2, 1, 1), random(4, 4, 1, 1)
        attention = ChannelAttention(*norm, *weights, activation="relu", topk_ratio=1, window=None)
        squeeze = random(3, 4, 1, 1), random(3), random(3, 1, 5, 5), random(3)
        filters = random(50, 3, 1, 1), random(50), random(4, 4, 1, 1)
        local = LocalAttention(*norm, random(4, 4, 1, 1), *squeeze, *filters, window_size=5)
        for layer in (feed_forward, attention, attention._replace(window=12), local):
            in_windows = isinstance(layer, ChannelAttention) and layer.window
            trains = dtype != torch.float64 and not in_windows and not _training().refuses(layer, x.to(device))
            actual = _results(BACKEND, layer, x, lambda t: t.to(device), trains)
            expected = _results(reference.BACKEND, layer, x, Tensor.double, trains)
            worst = max(worst, largest_difference(actual, expected))
    return worst


def _difference_in_training(kind: Any, fields: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> float:
    """The same of a layer of given sizes, with its gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: torch.Size) -> Tensor:
        # Positive: no similarity is near 0, where the gradient of ReLU jumps.
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").abs()
        return (values / max(1, shape[1:].numel())).to(dtype)

    layer: Any = kind(*(random(field) if isinstance(field, torch.Size) else field for field in fields))
    x = random(torch.Size((1, len(layer.norm_weight), 18, 21)))
    with torch.inference_mode(False), torch.enable_grad(), autocast.off(device.type), choice.untimed():
        actual = _trained(BACKEND, layer, x, lambda t: t.to(device))
        return largest_difference(actual, _trained(reference.BACKEND, layer, x, Tensor.double))


def _results(
    backend: Backend, layer: Layer, x: Tensor, change: Callable[[Tensor], Tensor], trains: bool
) -> list[Tensor]:
    """The result of a layer with changed tensors; if it is trained, once more with the gradients of all of them."""
    with torch.no_grad():
        inferred = backend.infer(map_tensors(layer, change), change(x))
    return [inferred, *_trained(backend, layer, x, change)] if trains else [inferred]


def _trained(backend: Backend, layer: Layer, x: Tensor, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The result of a layer with changed tensors, and the gradients of x and all of them."""

    def leaf(t: Tensor) -> Tensor:
        return change(t).detach().requires_grad_()

    x, layer = leaf(x), map_tensors(layer, leaf)
    out = backend.train(layer, x)
    return [out.detach(), *torch.autograd.grad(out, (x, *tensors_of(layer)), x.detach())]


def _layer(name: str) -> Any:
    def infer(layer: Any, x: Tensor) -> Tensor:
        return getattr(planar, name)(layer, x, _steps().STEPS)

    def train(layer: Any, x: Tensor) -> Tensor:
        return getattr(_training(), name)(layer, x)

    return LayerFunctions(infer, planar.recomputing(train, KEPT))


def _steps() -> Any:
    from dlgsanet.ops.backends.triton import steps

    return steps


def _training() -> Any:
    from dlgsanet.ops.backends.triton import training

    return training


BACKEND = Backend(
    name="triton",
    unsuited=why_not,
    dynamic_local_attention=_layer("dynamic_local_attention"),
    channel_attention=_layer("channel_attention"),
    gated_feed_forward=_layer("gated_feed_forward"),
    convolution=LayerFunctions(lambda layer, x: _steps().convolution(layer, x), None),
    add_convolution=lambda layer, x, to: _steps().add_convolution(layer, x, to),
    feature_maps=7,
    timed=timed,
)
