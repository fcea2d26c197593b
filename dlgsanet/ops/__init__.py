"""Functions on tensors: the dynamic depth-wise convolution and the network's fused layers, for every backend."""

from dlgsanet.ops.backends.reference import layer_norm, select_similarities
from dlgsanet.ops.layers import channel_attention, dynamic_local_attention, gated_feed_forward
from dlgsanet.ops.operators import dynamic_depthwise_conv, fused_dynamic_depthwise_conv

__all__ = [
    "channel_attention",
    "dynamic_depthwise_conv",
    "dynamic_local_attention",
    "fused_dynamic_depthwise_conv",
    "gated_feed_forward",
    "layer_norm",
    "select_similarities",
]
