"""Plain PyTorch definitions of every layer, for any device and float dtype, under autocast, differentiable.

The other backends must give the same results. The code follows the paper: nothing is tuned, and no other backend is
called.

Axes: B batch, C channels, H height, W width, G groups of channels that share a filter, K window size, D channels
of the feature that filters are formed from, c channels of one attention head.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops.backends import Backend, ConvolutionFunctions, LayerFunctions
from dlgsanet.ops.backends.gradients import convolve, differentiate_again_by
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import (
    ChannelAttention,
    Conv3x3,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    LocalAttention,
    dynamic_conv_of,
)
from dlgsanet.ops.transforms import is_plain
from dlgsanet.ops.windows import covering_windows

# The dynamic depth-wise convolution ("On the Connection between Local Attention and Dynamic Depth-wise Convolution",
# ICLR 2022), as in MHDLSA, DLGSANet section 3.2.


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are formed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _taps(x: Tensor, groups: int, window_size: int) -> Iterator[Tensor]:
    """Yield x shifted by each tap of the window, in row order: [B, G, C // G, H, W], zero outside the image."""
    height, width = x.shape[2:]
    r = window_size // 2
    padded = F.pad(x, (r, r, r, r)).unflatten(1, (groups, -1))
    for i in range(window_size):
        for j in range(window_size):
            yield padded[..., i : i + height, j : j + width]


def dynamic_depthwise_conv(convolution: DynamicConv, x: Tensor) -> Tensor:
    """Filter each pixel of x [B, C, H, W] with its own filters: [B, C, H, W]."""
    filters = convolution.filters
    groups, window_size = filters.shape[1:3]
    dtype = accumulation_dtype(x.dtype)
    taps = filters.to(dtype).flatten(2, 3).unsqueeze(3)  # [B, G, K * K, 1, H, W]
    out = x.new_zeros(x.shape, dtype=dtype).unflatten(1, (groups, -1))
    for t, shifted in enumerate(_taps(x.to(dtype), groups, window_size)):
        out = out + taps[:, :, t] * shifted
    return out.flatten(1, 2).to(x.dtype)


def dynamic_depthwise_conv_backward(convolution: DynamicConv, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and filters."""
    filters = convolution.filters
    groups, window_size = filters.shape[1:3]
    height, width = x.shape[2:]
    r = window_size // 2
    dtype = accumulation_dtype(x.dtype)
    grad = grad.to(dtype).unflatten(1, (groups, -1))
    taps = filters.to(dtype).flatten(2, 3).unsqueeze(3)
    grad_padded = F.pad(torch.zeros_like(grad), (r, r, r, r))
    grad_taps = []
    for t, shifted in enumerate(_taps(x.to(dtype), groups, window_size)):
        i, j = divmod(t, window_size)
        grad_padded[..., i : i + height, j : j + width] += taps[:, :, t] * grad
        grad_taps.append((grad * shifted).sum(2))
    grad_x = grad_padded[..., r : r + height, r : r + width].flatten(1, 2)
    grad_filters = torch.stack(grad_taps, 2).view(filters.shape)
    return grad_x.to(x.dtype), grad_filters.to(filters.dtype)


def form_filters(convolution: FusedDynamicConv) -> Tensor:
    """Filters [B, G, K, K, H, W] from z, in the dtype in which sums are formed."""
    dtype = accumulation_dtype(convolution.z.dtype)
    filters = torch.einsum("od,bdhw->bohw", convolution.weight.to(dtype), convolution.z.to(dtype))
    if convolution.bias is not None:
        filters = filters + convolution.bias.to(dtype)[:, None, None]
    return filters.unflatten(1, (-1, convolution.window_size, convolution.window_size))


def fused_dynamic_depthwise_conv(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    """`dynamic_depthwise_conv` with filters from z."""
    filters = form_filters(convolution)
    return dynamic_depthwise_conv(DynamicConv(filters), x.to(filters.dtype)).to(x.dtype)


def fused_dynamic_depthwise_conv_backward(
    convolution: FusedDynamicConv, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, z, weight and bias. There is one for a bias of None too."""
    z, weight, bias, _ = convolution
    filters = form_filters(convolution)
    dtype = filters.dtype
    grad_x, grad_filters = dynamic_depthwise_conv_backward(DynamicConv(filters), x.to(dtype), grad.to(dtype))
    grad_filters = grad_filters.flatten(1, 3)  # [B, G * K * K, H, W]
    grad_z = torch.einsum("od,bohw->bdhw", weight.to(dtype), grad_filters)
    grad_weight = torch.einsum("bohw,bdhw->od", grad_filters, z.to(dtype))
    grad_bias = grad_filters.sum((0, 2, 3))
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return grad_x.to(x.dtype), grad_z.to(z.dtype), grad_weight.to(weight.dtype), grad_bias.to(bias_dtype)


FUSED_CONVOLUTION = ConvolutionFunctions(fused_dynamic_depthwise_conv, fused_dynamic_depthwise_conv_backward)


def _convolve(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    """Uses the gradient above: autograd would keep a tensor for each of the K * K taps."""
    return convolve(FUSED_CONVOLUTION, convolution, x)


# Whole layers, each with its normalisation and residual connection.


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise over the channels at each pixel; x [B, C, H, W], weight and bias [C]."""
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, LAYER_NORM_EPS).movedim(-1, 1)


def dynamic_local_attention(
    layer: LocalAttention, x: Tensor, convolve: Callable[[FusedDynamicConv, Tensor], Tensor] = _convolve
) -> Tensor:
    """MHDLSA: [B, C, H, W] -> [B, C, H, W]. convolve: computes the dynamic convolution."""
    y = F.conv2d(layer_norm(x, layer.norm_weight, layer.norm_bias), layer.proj_in)
    z = F.conv2d(y, layer.squeeze_weight, layer.squeeze_bias)
    z = F.conv2d(z, layer.spatial_weight, layer.spatial_bias, padding=layer.window_size // 2, groups=z.shape[1])
    return x + F.conv2d(convolve(dynamic_conv_of(layer, z), y), layer.proj_out)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    """GDFN: [B, C, H, W] -> [B, C, H, W]."""
    hidden = F.conv2d(layer_norm(x, layer.norm_weight, layer.norm_bias), layer.proj_in)
    a, b = F.conv2d(hidden, layer.depthwise, padding=1, groups=hidden.shape[1]).chunk(2, 1)
    return x + F.conv2d(F.gelu(a) * b, layer.proj_out)


def select_similarities(similarities: Tensor, activation: str, topk_ratio: float = 0.5) -> Tensor:
    """Weights [..., c, c] from similarities [..., c, c]; rows are query channels (DLGSANet, section 3.3).

    Args:
        activation: relu, gelu, sigmoid, softmax or topk.
        topk_ratio: for topk: the share of the similarities in each row that is kept, in (0, 1].

    Raises:
        ValueError: the activation is unknown.
    """
    if activation == "relu":
        return F.relu(similarities)
    if activation == "gelu":
        return F.gelu(similarities)
    if activation == "sigmoid":
        return torch.sigmoid(similarities)
    if activation == "softmax":
        return similarities.softmax(-1)
    if activation == "topk":
        kept = max(1, round(topk_ratio * similarities.shape[-1]))
        values, keys = similarities.topk(kept, -1)
        # Under autocast softmax returns float32, so the zeros use its dtype.
        weights = values.softmax(-1)
        return torch.zeros_like(similarities, dtype=weights.dtype).scatter(-1, keys, weights)
    raise ValueError(f"unknown activation {activation!r}; choose from relu, gelu, sigmoid, softmax, topk")


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """SparseGSA, or MDTA with softmax: [B, C, H, W] -> [B, C, H, W]."""
    qkv = F.conv2d(layer_norm(x, layer.norm_weight, layer.norm_bias), layer.qkv_weight)
    qkv = F.conv2d(qkv, layer.depthwise, padding=1, groups=qkv.shape[1])
    if layer.window is None:
        out = _attend(layer, qkv.flatten(2)).unflatten(-1, qkv.shape[-2:])
    else:
        out = _attend_in_windows(layer, qkv, layer.window)
    return x + F.conv2d(out, layer.proj_out)


def _attend(layer: ChannelAttention, qkv: Tensor) -> Tensor:
    """Attention between channels: qkv [..., 3 * C, pixels] -> [..., C, pixels]."""
    q, k, v = qkv.unflatten(-2, (3, layer.temperature.shape[0], -1)).unbind(-4)  # each [..., heads, c, pixels]
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    similarities = q @ k.transpose(-2, -1) * layer.temperature
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    return (weights.to(v.dtype) @ v).flatten(-3, -2)


def _attend_in_windows(layer: ChannelAttention, qkv: Tensor, window: int) -> Tensor:
    """Test-time local conversion (TLC, ECCV 2022): attend within overlapping windows, average where they overlap."""
    batch, channels, height, width = qkv.shape
    rows = covering_windows(height, window, qkv.device)  # [window rows, pixels down a window]
    cols = covering_windows(width, window, qkv.device)
    windows = qkv[:, :, rows.flatten()][..., cols.flatten()]
    windows = windows.view(batch, channels, *rows.shape, *cols.shape).permute(0, 2, 4, 1, 3, 5)
    out = _attend(layer, windows.flatten(-2))
    out = out.unflatten(-1, (rows.shape[1], cols.shape[1])).permute(0, 3, 1, 4, 2, 5)
    out = out.reshape(batch, channels // 3, rows.numel(), cols.numel())
    return _average_overlap(_average_overlap(out, 2, rows, height), 3, cols, width)


def _average_overlap(x: Tensor, dim: int, places: Tensor, size: int) -> Tensor:
    """Put entries of `dim` at their places along an axis of length `size`; average those with the same place."""
    shape = list(x.shape)
    shape[dim] = size
    total = x.new_zeros(shape).index_add(dim, places.flatten(), x)
    count = x.new_zeros(size).index_add(0, places.flatten(), x.new_ones(places.numel()))
    return total / count.view([-1 if d == dim else 1 for d in range(x.dim())])


def _convolve_3x3(layer: Conv3x3, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def convolution(layer: Conv3x3, x: Tensor, convolve: Callable[[Conv3x3, Tensor], Tensor] = _convolve_3x3) -> Tensor:
    """The 3x3 convolution with what comes before and after it; shapes as in `Conv3x3`.

    convolve: computes the convolution with its bias alone, as a new tensor.
    """
    out = convolve(layer, x if layer.mean is None else x - layer.mean)
    if layer.factor != 1:
        out = F.pixel_shuffle(out, layer.factor)
    if layer.to is None:
        return out
    to = layer.to if layer.to.shape == out.shape else layer.to.to(out.dtype)  # numbers change no dtype
    # In place only where nothing but the result counts: torch.jit.trace checks that it gets the same graph again.
    return out + to if torch.is_grad_enabled() or not is_plain() else out.add_(to)


BACKEND = Backend(
    name="reference",
    dynamic_local_attention=LayerFunctions(dynamic_local_attention, dynamic_local_attention),
    channel_attention=LayerFunctions(channel_attention, channel_attention),
    gated_feed_forward=LayerFunctions(gated_feed_forward, gated_feed_forward),
    convolution=LayerFunctions(convolution, convolution),
    dynamic_depthwise_conv=ConvolutionFunctions(dynamic_depthwise_conv, dynamic_depthwise_conv_backward),
    fused_dynamic_depthwise_conv=FUSED_CONVOLUTION,
)

differentiate_again_by(BACKEND.functions)

# PyTorch's operations alone, which `torch.func` follows; the gradient of the dynamic convolution keeps all its taps.
_plain_local_attention = partial(dynamic_local_attention, convolve=fused_dynamic_depthwise_conv)
PLAIN = replace(BACKEND, dynamic_local_attention=LayerFunctions(_plain_local_attention, _plain_local_attention))
