"""Functions on tensors: the dynamic depth-wise convolution and the network's layers, for every backend."""

from dlgsanet.ops.backends.reference import layer_norm, select_similarities
from dlgsanet.ops.layers import apply
from dlgsanet.ops.operators import dynamic_depthwise_conv, fused_dynamic_depthwise_conv
from dlgsanet.ops.records import ChannelAttention, GatedFeedForward, LocalAttention

__all__ = [
    "ChannelAttention",
    "GatedFeedForward",
    "LocalAttention",
    "apply",
    "dynamic_depthwise_conv",
    "fused_dynamic_depthwise_conv",
    "layer_norm",
    "select_similarities",
]
