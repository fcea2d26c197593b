"""Layers of PyTorch's operations around the operator of the dynamic convolution, which has backends of its own.

They run on any device, under autocast, and in graphs that are being traced. The operator is called by its registered
name, as in a traced graph; `dlgsanet.ops.operators` registers it and chooses its backend.
"""

import torch
from torch import Tensor

from dlgsanet.ops.autocast import in_autocast_dtype
from dlgsanet.ops.backends import Backend, LayerFunctions, reference
from dlgsanet.ops.records import FusedDynamicConv, LocalAttention


def _convolve(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    return in_autocast_dtype(torch.ops.dlgsanet.fused_dynamic_depthwise_conv, x, *convolution)


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return reference.dynamic_local_attention(layer, x, _convolve)


BACKEND = Backend(
    name="composed",
    dynamic_local_attention=LayerFunctions(dynamic_local_attention, dynamic_local_attention),
    channel_attention=reference.BACKEND.channel_attention,
    gated_feed_forward=reference.BACKEND.gated_feed_forward,
    convolution=reference.BACKEND.convolution,
)
