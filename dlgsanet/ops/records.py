"""The layers that backends compute, as records of named tensors and settings.

Axes: B batch, C channels, H height, W width, K window size, G groups of channels that share a filter, D channels of
the feature that filters are formed from, h hidden channels of the feed-forward network.

The layers of blocks are pre-norm and residual: they compute ``x + layer(norm(x))`` for x [B, C, H, W], normalised over
C.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class LocalAttention(NamedTuple):
    """Multi-head dynamic local self-attention (DLGSANet, section 3.2).

    ``y = proj_in(norm(x)); z = depthwise_KxK(conv1x1(y)); x + proj_out(fused_dynamic_depthwise_conv(y, z, ...))``
    """

    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]
    proj_in: Tensor  # [C, C, 1, 1]
    squeeze_weight: Tensor  # [D, C, 1, 1]
    squeeze_bias: Tensor  # [D]
    spatial_weight: Tensor  # [D, 1, K, K]
    spatial_bias: Tensor  # [D]
    filter_weight: Tensor  # [G * K * K, D, 1, 1]
    filter_bias: Tensor  # [G * K * K]
    proj_out: Tensor  # [C, C, 1, 1]
    window_size: int  # K, odd


class ChannelAttention(NamedTuple):
    """(Sparse) global self-attention between the channels of each head (DLGSANet, section 3.3).

    ``q, k, v = depthwise_3x3(qkv(norm(x)))``; in each head, with c channels as rows of all pixels,
    ``weights = activation(unit(q) @ unit(k).T * temperature)`` [c, c]; ``x + proj_out(weights @ v)``.
    With windows this is done within each of them, and the mean is taken where they overlap.
    """

    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]
    qkv_weight: Tensor  # [3 * C, C, 1, 1]
    depthwise: Tensor  # [3 * C, 1, 3, 3]
    temperature: Tensor  # [heads, 1, 1]
    proj_out: Tensor  # [C, C, 1, 1]
    activation: str  # turns similarities into weights: relu, gelu, sigmoid, softmax or topk
    topk_ratio: float  # for topk: the share of the similarities in each row that is kept, in (0, 1]
    window: int | None  # side in pixels of the windows of test-time local conversion; None: the whole image


class GatedFeedForward(NamedTuple):
    """Gated depth-wise feed-forward network (Restormer, section 3.2).

    ``a, b = depthwise_3x3(proj_in(norm(x))); x + proj_out(gelu(a) * b)``
    """

    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]
    proj_in: Tensor  # [2 * h, C, 1, 1]
    depthwise: Tensor  # [2 * h, 1, 3, 3]
    proj_out: Tensor  # [C, h, 1, 1]


class Conv3x3(NamedTuple):
    """A 3x3 convolution with zero padding, and what comes right before and after it: no norm.

    ``to + pixel_shuffle(conv3x3(x - mean), factor)``: [B, C, H, W] -> [B, O / factor**2, factor * H, factor * W]
    """

    weight: Tensor  # [O, C, 3, 3]
    bias: Tensor | None  # [O]
    mean: Tensor | None = None  # [1, C, 1, 1], subtracted before the padding
    factor: int = 1  # 1: no pixel shuffle
    to: Tensor | None = None  # of the result's shape or [1, O / factor**2, 1, 1]


class DynamicConv(NamedTuple):
    """The arguments of `dlgsanet.ops.dynamic_depthwise_conv` other than x."""

    filters: Tensor  # [B, G, K, K, H, W]


class FusedDynamicConv(NamedTuple):
    """The arguments of `dlgsanet.ops.fused_dynamic_depthwise_conv` other than x."""

    z: Tensor  # [B, D, H, W]
    weight: Tensor  # [G * K * K, D]
    bias: Tensor | None  # [G * K * K]
    window_size: int  # K, odd


Layer = LocalAttention | ChannelAttention | GatedFeedForward
Convolution = DynamicConv | FusedDynamicConv
Record = Layer | Conv3x3 | Convolution

# Names of the operations: they are fields of `Backend`, and messages use them.
OPERATIONS: dict[type, str] = {
    LocalAttention: "dynamic_local_attention",
    ChannelAttention: "channel_attention",
    GatedFeedForward: "gated_feed_forward",
    Conv3x3: "convolution",
    DynamicConv: "dynamic_depthwise_conv",
    FusedDynamicConv: "fused_dynamic_depthwise_conv",
}


def tensors_of(record: Record) -> list[Tensor]:
    """The tensors of a record, in the order of its fields."""
    return [value for value in record if isinstance(value, Tensor)]


def map_tensors(record: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The record with each of its tensors replaced by ``function(tensor)``."""
    return record._make(function(value) if isinstance(value, Tensor) else value for value in record)


def dynamic_conv_of(layer: LocalAttention, z: Tensor) -> FusedDynamicConv:
    """The dynamic convolution of a layer, with filters that are formed from z [B, D, H, W]."""
    return FusedDynamicConv(z, layer.filter_weight.flatten(1), layer.filter_bias, layer.window_size)
