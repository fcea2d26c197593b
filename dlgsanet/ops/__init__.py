"""Functions on tensors: the dynamic depth-wise convolution and the network's layers, for every backend."""

from dlgsanet.ops.backends.reference import layer_norm, select_similarities
from dlgsanet.ops.backends.torch.frozen import freeze
from dlgsanet.ops.backends.torch.strip_rows import layers_of_network
from dlgsanet.ops.kept_memory import KeptMemory, empty
from dlgsanet.ops.layers import add_convolution, adds_in_place, apply, bounds_memory, keeps_x_alone
from dlgsanet.ops.operators import dynamic_depthwise_conv, fused_dynamic_depthwise_conv
from dlgsanet.ops.records import ChannelAttention, Conv3x3, GatedFeedForward, LocalAttention

__all__ = [
    "ChannelAttention",
    "Conv3x3",
    "GatedFeedForward",
    "KeptMemory",
    "LocalAttention",
    "add_convolution",
    "adds_in_place",
    "apply",
    "bounds_memory",
    "dynamic_depthwise_conv",
    "empty",
    "freeze",
    "fused_dynamic_depthwise_conv",
    "keeps_x_alone",
    "layer_norm",
    "layers_of_network",
    "select_similarities",
]
