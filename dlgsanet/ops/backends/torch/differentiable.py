"""The layers for training on CPUs: the computation of the reference, channels last.

In this layout 1x1 convolutions are plain matrix products, layer_norm needs no copies, and PyTorch's depth-wise
convolutions are ten times faster than on contiguous [B, C, H, W] tensors.

Axes: B batch, H height, W width, C channels, N pixels; c channels of an attention head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops.backends.gradients import convolve
from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.backends.torch.dynamic_conv import FUSED_CONVOLUTION
from dlgsanet.ops.backends.torch.mixing import in_heads, mixing_matrices
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import ChannelAttention, GatedFeedForward, Layer, LocalAttention, dynamic_conv_of


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    x = _channels_last(x)
    y = _project(_normalise(layer, x), layer.proj_in)
    z = _depthwise(_project(y, layer.squeeze_weight, layer.squeeze_bias), layer.spatial_weight, layer.spatial_bias)
    y, z = y.movedim(-1, 1), z.movedim(-1, 1)
    y = convolve(FUSED_CONVOLUTION, dynamic_conv_of(layer, z), y)
    return x + _project(y.movedim(1, -1), layer.proj_out).movedim(-1, 1)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    x = _channels_last(x)
    qkv = _depthwise(_project(_normalise(layer, x), layer.qkv_weight), layer.depthwise)
    q, k, v = qkv.flatten(1, 2).chunk(3, -1)  # each [B, N, C]
    q, k = q.to(accumulation_dtype(q.dtype)), k.to(accumulation_dtype(k.dtype))
    gram = q.transpose(1, 2) @ k
    norms = torch.linalg.vector_norm(q, dim=1), torch.linalg.vector_norm(k, dim=1)
    mixing = mixing_matrices(layer, in_heads(gram, len(layer.temperature)), *norms)
    return x + (v @ mixing.transpose(1, 2)).unflatten(1, x.shape[2:]).movedim(-1, 1)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    x = _channels_last(x)
    a, b = _depthwise(_project(_normalise(layer, x), layer.proj_in), layer.depthwise).chunk(2, -1)
    return x + _project(F.gelu(a) * b, layer.proj_out).movedim(-1, 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _normalise(layer: Layer, x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], the layout of the following steps."""
    return F.layer_norm(x.movedim(1, -1), layer.norm_weight.shape, layer.norm_weight, layer.norm_bias, LAYER_NORM_EPS)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution on [B, H, W, C]."""
    return F.linear(x, weight.flatten(1), bias)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depth-wise convolution on [B, H, W, C]."""
    padding = weight.shape[-1] // 2
    return F.conv2d(x.movedim(-1, 1), weight, bias, padding=padding, groups=len(weight)).movedim(1, -1)
