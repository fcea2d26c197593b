"""The dynamic convolution and layers on NVIDIA GPUs, by the CUDA kernels in `kernels/`.

The gated feed-forward layer is also trained by them, other layers are not. Here kernels are chosen; each layer's file
has its launches.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import NO_LAYER, Backend, ConvolutionFunctions, LayerFunctions, choice
from dlgsanet.ops.backends.cuda import channel_attention, dynamic_conv, feed_forward, first_use, local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.dynamic_conv import (
    BACKWARD_EXACT,
    BACKWARD_MMA,
    FEATURES_IN_REGISTERS,
    FORWARD_EXACT,
    FORWARD_MMA,
    WINDOW_SIZES,
    dynamic_depthwise_conv,
    dynamic_depthwise_conv_backward,
    fits_tensor_cores,
    fused_backward,
    fused_forward,
    parts_of,
    tf32_suffices,
)
from dlgsanet.ops.backends.cuda.first_use import Use
from dlgsanet.ops.backends.cuda.modules import SCALARS
from dlgsanet.ops.backends.torch.frozen import KEPT
from dlgsanet.ops.records import (
    ChannelAttention,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    Layer,
    LocalAttention,
    Record,
    tensors_of,
)

LAYERS: dict[type, Any] = {
    GatedFeedForward: feed_forward,
    ChannelAttention: channel_attention,
    LocalAttention: local_attention,
}

EXACT_LAYERS = (*(layer.EXACT for layer in LAYERS.values()), feed_forward.BACKWARD[feed_forward.EXACT])
ROUNDED_LAYERS = (*(layer.ROUNDED for layer in LAYERS.values()), feed_forward.BACKWARD[feed_forward.ROUNDED])
OF_LAYERS = (*EXACT_LAYERS, *ROUNDED_LAYERS)
EXACT = (*EXACT_LAYERS, FORWARD_EXACT, BACKWARD_EXACT)
TRAINED = (*feed_forward.BACKWARD.values(),)  # of gradients


def unsuited(record: Record, x: Tensor, training: bool) -> str | None:
    reason = no_nvidia_gpu(x) or no_layer(record, x) or _unsuited(record, x, training)
    # Where a layer is not used, the next backend's kernels for it are, and no reason is reported.
    return NO_LAYER if reason and type(record) in LAYERS else reason


def no_nvidia_gpu(x: Tensor) -> str | None:
    """Why x cannot be given to a CUDA kernel, or None."""
    return "it needs an NVIDIA GPU" if x.device.type != "cuda" or torch.version.hip else None


def no_layer(record: Record, x: Tensor) -> str | None:
    """`NO_LAYER` for a layer with dtypes or sizes that the kernels are not made for, or None."""
    layer = LAYERS.get(type(record))
    return NO_LAYER if layer and not layer.takes(record, x) else None


def _unsuited(record: Record, x: Tensor, training: bool) -> str | None:
    tensors = [x, *tensors_of(record)]
    if any(t.device != x.device for t in tensors):
        return "the tensors are on several devices"
    if not all(t.numel() for t in tensors):
        return "a tensor is empty"
    if x.dtype not in SCALARS:
        return f"it has no kernels for {x.dtype}"
    assert isinstance(record, DynamicConv | FusedDynamicConv | Layer)
    if isinstance(record, DynamicConv | FusedDynamicConv):
        window_size = record.filters.shape[2] if isinstance(record, DynamicConv) else record.window_size
        if window_size not in WINDOW_SIZES:
            return f"its windows are {', '.join(map(str, WINDOW_SIZES))} wide, not {window_size}"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return "the tensors are of a subclass"
    return unusable(x.device) or refused_kernels(record, x, training)


@functools.cache
def unusable(device: torch.device) -> str | None:
    """Why no kernel can be compiled or loaded for a GPU, or None."""
    try:
        from cupy.cuda import nvrtc

        version, known = nvrtc.getVersion(), nvrtc.getSupportedArchs()
        cuda_modules.shared_memory_limit(device)  # fails where the driver is older than CuPy's CUDA
    except (ImportError, RuntimeError) as e:
        return f"CuPy with NVRTC is missing or cannot be used (pip install cupy-cuda12x or cupy-cuda13x): {e}"
    major, minor = cuda_modules.capability(device)
    if major < 7:
        return f"it needs a GPU of compute capability 7.0 or more, not {major}.{minor}"
    if 10 * major + minor not in known:
        return f"CuPy's NVRTC {version[0]}.{version[1]} does not know GPUs of compute capability {major}.{minor}"
    return None


def refused_kernels(convolution: DynamicConv | FusedDynamicConv | Layer, x: Tensor, training: bool) -> str | None:
    """Why the kernels for a call are not used, or failed at their first use on this GPU, or None."""
    if layer := LAYERS.get(type(convolution)):
        of, sizes = layer.path(x), layer.sizes(convolution)
        for path in (of, layer.BACKWARD[of]) if training else (of,):
            reason = no_tensor_cores(path, x.dtype, x.device, x.shape[1])
            if reason := reason or first_use.refused(Use(path, x.dtype, sizes, x.device), PATHS[path]):
                return reason
        return None
    assert isinstance(convolution, DynamicConv | FusedDynamicConv)
    of = _forward_path(x)
    if isinstance(convolution, FusedDynamicConv) and not training and _on_tensor_cores(of, convolution, x):
        return None
    kind = "plain" if isinstance(convolution, DynamicConv) else "fused"
    path = f"{kind} {'backward' if training else 'forward'}"
    return first_use.refused(_use(path, convolution, x), PATHS[path])


def _use(path: str, convolution: DynamicConv | FusedDynamicConv, x: Tensor) -> Use:
    channels = x.shape[1]
    if isinstance(convolution, DynamicConv):
        groups, window, features = convolution.filters.shape[1], convolution.filters.shape[2], 0
    else:
        window, features = convolution.window_size, convolution.z.shape[1]
        groups = convolution.weight.shape[0] // window**2
    return Use(path, x.dtype, (window, channels // groups, features), x.device)


def _forward_path(x: Tensor) -> str:
    return FORWARD_MMA if tf32_suffices(x) else FORWARD_EXACT


def fused_dynamic_depthwise_conv(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    path = _forward_path(x)
    there = _on_tensor_cores(path, convolution, x) and _faster_there(path, convolution, x)
    return fused_forward(convolution, x, path if there else None)


def _faster_there(path: str, convolution: FusedDynamicConv, x: Tensor) -> bool:
    """Whether tensor cores, which could be used, are faster than the other kernel on this card."""
    if first_use.refused(_use("fused forward", convolution, x), PATHS["fused forward"]):
        return True
    which = _choice(_use(path, convolution, x))
    return _is_faster(which, x, lambda there: fused_forward(convolution, x, path if there else None))


def _is_faster(which: choice.Choice, x: Tensor, run: Callable[[bool], Tensor]) -> bool:
    """Whether `run(True)`, on tensor cores, is faster than `run(False)` on this card."""
    pixels = x.shape[0] * x.shape[2:].numel()
    return choice.is_faster(which, pixels, functools.partial(run, True), functools.partial(run, False))


@functools.cache
def _choice(use: Use, part: str = "") -> choice.Choice:
    """The choice of a kernel: that of `use`, or one of them."""
    name, sources = use.path + part, tuple(cuda_modules.sources())
    return choice.Choice(name, use.device, sources, (name, *use[1:-1], cuda_modules.compiler_version()))


def fused_dynamic_depthwise_conv_backward(
    convolution: FusedDynamicConv, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    path = BACKWARD_MMA if tf32_suffices(x) else BACKWARD_EXACT
    if not _on_tensor_cores(path, convolution, x):
        return fused_backward(convolution, x, grad, path, lambda *gradient: False)
    use = _use(path, convolution, x)
    return fused_backward(convolution, x, grad, path, lambda name, run: _is_faster(_choice(use, name), x, run))


def timed(layer: Any, x: Tensor) -> tuple[object, ...]:
    """What the time depends on, apart from the pixels. Weights that are not frozen are packed in every call."""
    kernels = LAYERS[type(layer)]
    how = kernels.path(x), x.dtype, autocast.dtype_of(x), hasattr(layer.proj_out, KEPT)
    return *how, *kernels.sizes(layer), getattr(layer, "window", None)


_INFERENCE: dict[type, Callable[..., Tensor]] = {
    GatedFeedForward: feed_forward.gated_feed_forward,
    ChannelAttention: channel_attention.channel_attention,
    LocalAttention: local_attention.dynamic_local_attention,
}


def _inference(path: str) -> first_use.Run:
    return lambda layer, x, grad: (_INFERENCE[type(layer)](layer, x, path),)


def _gradients(path: str) -> first_use.Run:
    return lambda layer, x, grad: feed_forward.gradients(layer, x, grad, path)


def _backward(path: str, on_tensor_cores: bool) -> first_use.Run:
    return lambda convolution, x, grad: fused_backward(convolution, x, grad, path, lambda *gradient: on_tensor_cores)


# Each is compared with the reference at its first use.
PATHS: dict[str, first_use.Run] = {
    "plain forward": lambda convolution, x, grad: (dynamic_depthwise_conv(convolution, x),),
    "plain backward": dynamic_depthwise_conv_backward,
    "fused forward": lambda convolution, x, grad: (fused_forward(convolution, x, None),),
    FORWARD_MMA: lambda convolution, x, grad: (fused_forward(convolution, x, FORWARD_MMA),),
    FORWARD_EXACT: lambda convolution, x, grad: (fused_forward(convolution, x, FORWARD_EXACT),),
    "fused backward": _backward(BACKWARD_MMA, False),
    BACKWARD_MMA: _backward(BACKWARD_MMA, True),
    BACKWARD_EXACT: _backward(BACKWARD_EXACT, True),
    **{path: _inference(path) for layer in LAYERS.values() for path in (layer.EXACT, layer.ROUNDED)},
    **{path: _gradients(of) for of, path in feed_forward.BACKWARD.items()},
}

BACKEND = Backend(
    name="cuda",
    unsuited=unsuited,
    dynamic_local_attention=LayerFunctions(local_attention.dynamic_local_attention, None),
    channel_attention=LayerFunctions(channel_attention.channel_attention, None),
    gated_feed_forward=LayerFunctions(feed_forward.gated_feed_forward, feed_forward.train),
    dynamic_depthwise_conv=ConvolutionFunctions(dynamic_depthwise_conv, dynamic_depthwise_conv_backward),
    fused_dynamic_depthwise_conv=ConvolutionFunctions(
        fused_dynamic_depthwise_conv, fused_dynamic_depthwise_conv_backward
    ),
    keeps_x_alone=True,
    timed=timed,
)


def _on_tensor_cores(path: str, convolution: FusedDynamicConv, x: Tensor) -> bool:
    """Whether a path is exact enough, and its kernels serve these sizes and agreed at first use."""
    window, features = convolution.window_size, convolution.z.shape[1]
    exact_enough = path in EXACT or tf32_suffices(x)
    if path in (FORWARD_MMA, FORWARD_EXACT):
        fits = fits_tensor_cores(convolution, x)
    else:
        parts, _ = parts_of(x.shape[1] * window**2 // convolution.weight.shape[0])
        fits = window <= 7 and features <= FEATURES_IN_REGISTERS and parts == 1
    if not exact_enough or not fits or no_tensor_cores(path, x.dtype, x.device):
        return False
    return first_use.refused(_use(path, convolution, x), PATHS[path]) is None


def forget_plans() -> None:
    """Plan all launches again, after what loads modules was replaced."""
    for planned in (dynamic_conv.plan, feed_forward.plan_backward, *(layer.plan for layer in LAYERS.values())):
        planned.cache_clear()


def no_tensor_cores(path: str, dtype: torch.dtype, device: torch.device, channels: int = 0) -> str | None:
    """Why a kernel of `PATHS` is never used for a dtype and so many channels on a GPU, or None."""
    needed = "tensor cores" in path or path in OF_LAYERS
    if needed and (dtype == torch.float64 or cuda_modules.capability(device) < (8, 0)):
        return "not used: float64 has no tensor cores" if dtype == torch.float64 else "not used: needs sm_80 or later"
    if path in TRAINED and not feed_forward.trains(channels, device):
        return "not used: its shared memory does not fit into a multiprocessor"
    return "not used: rounded factors are exact enough" if path in EXACT and dtype != torch.float32 else None
