"""The layers for CPUs in plain PyTorch, in strips of rows, so that hidden tensors stay in the cache.

Any float dtype, batch, image size and window size. Peak memory grows with the features of the image. It does not grow
with the hidden tensors: filters (G * K * K values per pixel), both halves of the feed-forward network, TLC windows.
"""

import torch
from torch import Tensor

from dlgsanet.ops.backends import Backend, ConvolutionFunctions, LayerFunctions
from dlgsanet.ops.backends.torch import differentiable, dynamic_conv, inference
from dlgsanet.ops.records import ChannelAttention, Record, tensors_of


def unsuited(record: Record, x: Tensor, training: bool) -> str | None:
    tensors = [x, *tensors_of(record)]
    devices = {t.device.type for t in tensors}
    if devices != {"cpu"}:
        return f"the tensors are on {', '.join(sorted(devices))}"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return "the tensors are of a subclass"
    if x.numel() == 0:
        return "the tensors are empty"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtypes"
    if training and isinstance(record, ChannelAttention) and record.window is not None:
        return "it has no gradients for attention in windows, which training does not use"
    return None


BACKEND = Backend(
    name="torch",
    unsuited=unsuited,
    dynamic_local_attention=LayerFunctions(inference.dynamic_local_attention, differentiable.dynamic_local_attention),
    channel_attention=LayerFunctions(inference.channel_attention, differentiable.channel_attention),
    gated_feed_forward=LayerFunctions(inference.gated_feed_forward, differentiable.gated_feed_forward),
    dynamic_depthwise_conv=ConvolutionFunctions(
        dynamic_conv.dynamic_depthwise_conv, dynamic_conv.dynamic_depthwise_conv_backward
    ),
    fused_dynamic_depthwise_conv=dynamic_conv.FUSED_CONVOLUTION,
    feature_maps=7,  # measured 5.6
)
