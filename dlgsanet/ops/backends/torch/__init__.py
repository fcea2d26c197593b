"""The layers in plain PyTorch, in strips of rows: on CPUs to stay in the cache, on GPUs to bound memory.

Any device, float dtype, batch, image size and window size. Peak memory grows with the features of the image. It does
not grow with the hidden tensors: filters (G * K * K values per pixel), both halves of the feed-forward network, TLC
windows. CPUs work channels last, GPUs on [B, C, H, W].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import Backend, ConvolutionFunctions, LayerFunctions, reference
from dlgsanet.ops.backends.torch import differentiable, dynamic_conv, inference, planar
from dlgsanet.ops.records import ChannelAttention, Record, tensors_of

_PLAIN = {Tensor, torch.nn.Parameter}


def unsuited(record: Record, x: Tensor, training: bool) -> str | None:
    tensors = [x, *tensors_of(record)]
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        return f"the tensors are on {', '.join(sorted(map(str, devices)))}"
    if not {type(t) for t in tensors} <= _PLAIN:
        return "the tensors are of a subclass"
    if x.numel() == 0:
        return "the tensors are empty"
    if x.is_cpu and autocast.is_on("cpu"):
        return "autocast chooses the dtypes"
    if training and isinstance(record, ChannelAttention) and record.window is not None:
        return "it has no gradients for attention in windows, which training does not use"
    return None


def _by_device(on_cpu: Callable[[Any, Tensor], Tensor], on_gpu: Callable[[Any, Tensor], Tensor]) -> Any:
    return lambda layer, x: (on_cpu if x.is_cpu else on_gpu)(layer, x)


def _layer(name: str) -> Any:
    on_gpu = getattr(planar, name)
    return LayerFunctions(
        _by_device(getattr(inference, name), on_gpu),
        _by_device(getattr(differentiable, name), planar.recomputing(on_gpu)),
    )


BACKEND = Backend(
    name="torch",
    unsuited=unsuited,
    dynamic_local_attention=_layer("dynamic_local_attention"),
    channel_attention=_layer("channel_attention"),
    gated_feed_forward=_layer("gated_feed_forward"),
    convolution=reference.BACKEND.convolution,
    dynamic_depthwise_conv=ConvolutionFunctions(
        dynamic_conv.dynamic_depthwise_conv, dynamic_conv.dynamic_depthwise_conv_backward
    ),
    fused_dynamic_depthwise_conv=dynamic_conv.FUSED_CONVOLUTION,
    feature_maps=6.4,  # measured 6.3
)
