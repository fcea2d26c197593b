"""The layers for CPUs in PyTorch alone: strips of rows whose hidden tensors stay in the cache and are never whole.

Any float dtype, batch, size and window size. Peak memory grows with the features of the image, not with the hidden
ones: the filters (G * K * K a pixel), the feed-forward network's two halves, the windows of TLC.
"""

import torch
from torch import Tensor

from dlgsanet.ops.backends.torch.differentiable import (
    differentiable_channel_attention,
    differentiable_dynamic_local_attention,
    differentiable_gated_feed_forward,
)
from dlgsanet.ops.backends.torch.dynamic_conv import (
    dynamic_depthwise_conv,
    dynamic_depthwise_conv_backward,
    fused_dynamic_depthwise_conv,
    fused_dynamic_depthwise_conv_backward,
)
from dlgsanet.ops.backends.torch.inference import channel_attention, dynamic_local_attention, gated_feed_forward

__all__ = [
    "channel_attention",
    "differentiable_channel_attention",
    "differentiable_dynamic_local_attention",
    "differentiable_gated_feed_forward",
    "dynamic_depthwise_conv",
    "dynamic_depthwise_conv_backward",
    "dynamic_local_attention",
    "fused_dynamic_depthwise_conv",
    "fused_dynamic_depthwise_conv_backward",
    "gated_feed_forward",
    "why_not",
]


def why_not(operation: str, *args) -> str | None:
    tensors = [a for a in args if isinstance(a, Tensor)]
    devices = {t.device.type for t in tensors}
    if devices != {"cpu"}:
        return f"the tensors are on {', '.join(sorted(devices))}"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return "the tensors are not plain ones"
    if tensors[0].numel() == 0:
        return "the tensors are empty"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtypes"
    if operation == "differentiable_channel_attention" and args[-1] is not None:
        return "gradients through windows are not what training asks for"
    return None
