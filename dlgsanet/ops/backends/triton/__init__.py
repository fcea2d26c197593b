"""The layers on GPUs by Triton kernels between PyTorch's matrix products, for NVIDIA, AMD and Intel GPUs.

Triton comes with PyTorch for Linux; it also needs a C compiler and Python's headers. It has been tried on NVIDIA
GPUs alone. The layers are those of `dlgsanet.ops.backends.torch.planar` with other steps between the matrix products:
normalisation, depth-wise filters, the gate and attention are one kernel each, and so are their gradients. At first use
on a device small layers are compared with plain PyTorch. If they do not agree, the torch backend serves.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlgsanet.memory import is_out_of_memory
from dlgsanet.ops import autocast
from dlgsanet.ops.backends import NO_LAYER, Backend, LayerFunctions
from dlgsanet.ops.backends.cuda.first_use import TENSOR_CORE_TOLERANCE, TOLERANCE
from dlgsanet.ops.backends.cuda.modules import require_no_capture
from dlgsanet.ops.backends.torch import planar, unsuited
from dlgsanet.ops.records import ChannelAttention, GatedFeedForward, Record, tensors_of

DEVICES = ("cuda", "xpu")


def why_not(record: Record, x: Tensor, training: bool) -> str | None:
    if x.device.type not in DEVICES:
        return NO_LAYER
    if reason := unsuited(record, x, training):
        return reason
    if x.dtype not in TOLERANCE:
        return f"it has no kernels for {x.dtype}"
    return refused(x.dtype, x.device)


@functools.cache
def refused(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels are not used on a device, or None: they agree with plain PyTorch. The dispatch reports it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        require_no_capture()
    try:
        difference = _difference(dtype, device)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:600]
    # Matrix products between the kernels may be in TF32.
    most = TENSOR_CORE_TOLERANCE if dtype == torch.float32 else TOLERANCE[dtype]
    return None if difference <= most else f"it differs from plain PyTorch by {difference:.1e} of the largest value"


def _difference(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference from plain PyTorch in float64, relative to the largest value, of results and gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    worst = 0.0
    with torch.inference_mode(False), torch.enable_grad(), autocast.off(device.type):
        x, norm = random(1, 4, 18, 21), (random(4), random(4))
        feed_forward = GatedFeedForward(*norm, random(4, 4, 1, 1), random(4, 1, 3, 3), random(4, 2, 1, 1))
        weights = random(12, 4, 1, 1), random(12, 1, 3, 3), random(2, 1, 1), random(4, 4, 1, 1)
        attention = ChannelAttention(*norm, *weights, activation="relu", topk_ratio=1, window=None)
        layers = [feed_forward, attention, attention._replace(window=12)]
        functions = [planar.gated_feed_forward, planar.channel_attention, planar.channel_attention]
        for function, layer in zip(functions, layers, strict=True):
            actual = _results(function, layer, x, lambda t: t.to(device), _steps())
            expected = _results(function, layer, x, Tensor.double, planar.STEPS)
            for a, e in zip(actual, expected, strict=True):
                error = (a.cpu().double() - e).abs().max() / e.abs().max()
                worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
    return worst


def _results(function: Any, layer: Any, x: Tensor, change: Callable[[Tensor], Tensor], steps: Any) -> list[Tensor]:
    """The result of a layer with changed tensors, and the gradients of all of them, if it has gradients."""
    leaves = [change(t).detach().requires_grad_() for t in (x, *tensors_of(layer))]
    settings = [f for f in layer if not isinstance(f, Tensor)]
    out = function(type(layer)(*leaves[1:], *settings), leaves[0], steps)
    if isinstance(layer, ChannelAttention) and layer.window is not None:
        return [out.detach()]
    return [out.detach(), *torch.autograd.grad(out, leaves, leaves[0].detach())]


def _steps() -> planar.Steps:
    from dlgsanet.ops.backends.triton import steps

    return steps.STEPS


def _layer(function: Callable[..., Tensor]) -> Any:
    def compute(layer: Any, x: Tensor) -> Tensor:
        return function(layer, x, _steps())

    return LayerFunctions(compute, planar.recomputing(compute))


BACKEND = Backend(
    name="triton",
    unsuited=why_not,
    dynamic_local_attention=_layer(planar.dynamic_local_attention),
    channel_attention=_layer(planar.channel_attention),
    gated_feed_forward=_layer(planar.gated_feed_forward),
    feature_maps=7,
)
