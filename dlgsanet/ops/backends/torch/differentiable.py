"""The layers composed for training on CPUs: what the reference computes, in the layout that PyTorch's kernels like.

Channels last: there the 1x1 convolutions are plain matrix products, layer_norm needs no copies, and the depth-wise
convolutions are ten times faster than on planar tensors.

Axes: B batch, H height, W width, C channels, N pixels; c channels of an attention head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops import operators
from dlgsanet.ops.backends.reference import LAYER_NORM_EPS, accumulation_dtype
from dlgsanet.ops.backends.torch.mixing import mixing_matrices


def differentiable_dynamic_local_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    proj_in: Tensor,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    filter_weight: Tensor,
    filter_bias: Tensor,
    proj_out: Tensor,
    window_size: int,
) -> Tensor:
    x = _channels_last(x)
    y = _project(_normalise(x, norm_weight, norm_bias), proj_in)
    z = _depthwise(_project(y, squeeze_weight, squeeze_bias), spatial_weight, spatial_bias)
    y, z = y.movedim(-1, 1), z.movedim(-1, 1)
    y = operators.fused_dynamic_depthwise_conv(y, z, filter_weight.flatten(1), filter_bias, window_size)
    return x + _project(y.movedim(1, -1), proj_out).movedim(-1, 1)


def differentiable_channel_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
    window: None,
) -> Tensor:
    x = _channels_last(x)
    qkv = _depthwise(_project(_normalise(x, norm_weight, norm_bias), qkv_weight), depthwise)
    q, k, v = qkv.flatten(1, 2).chunk(3, -1)  # each [B, N, C]
    q, k = q.to(accumulation_dtype(q.dtype)), k.to(accumulation_dtype(k.dtype))
    gram = q.transpose(1, 2) @ k
    norms = torch.linalg.vector_norm(q, dim=1), torch.linalg.vector_norm(k, dim=1)
    mixing = mixing_matrices(gram, *norms, temperature, proj_out, activation, topk_ratio)
    return x + (v @ mixing.transpose(1, 2)).unflatten(1, x.shape[2:]).movedim(-1, 1)


def differentiable_gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    x = _channels_last(x)
    a, b = _depthwise(_project(_normalise(x, norm_weight, norm_bias), proj_in), depthwise).chunk(2, -1)
    return x + _project(F.gelu(a) * b, proj_out).movedim(-1, 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], as all that follows."""
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, LAYER_NORM_EPS)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution on [B, H, W, C]."""
    return F.linear(x, weight.flatten(1), bias)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depth-wise convolution on [B, H, W, C]."""
    padding = weight.shape[-1] // 2
    return F.conv2d(x.movedim(-1, 1), weight, bias, padding=padding, groups=len(weight)).movedim(1, -1)
