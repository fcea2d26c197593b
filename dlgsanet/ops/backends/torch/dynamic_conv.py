"""The dynamic depth-wise convolution and its gradients, in strips of rows.

One matrix product forms the filters of a strip. They are used immediately, by one multiply-add of the shifted strip per
tap. The backward pass forms them again. The reference has a tensor of filters, of G * K * K channels, for all pixels.

Axes as in `dlgsanet.ops.backends.reference`; n pixels of a strip.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from dlgsanet.ops.backends import ConvolutionFunctions
from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.backends.torch.strip_rows import rows_of_strip
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv

# The filters of a strip: 4 MB in float32, which stay in a processor's last level of cache.
FILTERS_IN_STRIP = 1 << 20
# The fewest elements that PyTorch gives to a thread. With smaller strips, some threads would have no work.
ELEMENTS_PER_THREAD = 1 << 15


def dynamic_depthwise_conv(convolution: DynamicConv, x: Tensor) -> Tensor:
    filters = convolution.filters
    dtype = accumulation_dtype(x.dtype)
    groups, window_size = filters.shape[1:3]
    padded = _pad(x, groups, window_size, dtype)
    out = x.new_zeros(x.shape, dtype=dtype).unflatten(1, (groups, -1))
    for images, rows in _strips(x, groups, window_size):
        strip = filters[images, ..., rows, :].to(dtype)
        _filter(out[images, ..., rows, :], _with_border(padded, images, rows, window_size), strip)
    return out.flatten(1, 2).to(x.dtype)


def dynamic_depthwise_conv_backward(convolution: DynamicConv, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    filters = convolution.filters
    dtype = accumulation_dtype(x.dtype)
    groups, window_size = filters.shape[1:3]
    padded, grad_padded = _pad(x, groups, window_size, dtype), _pad(torch.zeros_like(x), groups, window_size, dtype)
    grad = grad.to(dtype).unflatten(1, (groups, -1))
    grad_filters = torch.empty_like(filters, memory_format=torch.contiguous_format)
    for images, rows in _strips(x, groups, window_size):
        strip, grad_strip = filters[images, ..., rows, :].to(dtype), grad[images, ..., rows, :]
        _scatter(_with_border(grad_padded, images, rows, window_size), grad_strip, strip)
        taps = torch.empty_like(strip, memory_format=torch.contiguous_format)
        _correlate(taps, _with_border(padded, images, rows, window_size), grad_strip)
        grad_filters[images, ..., rows, :] = taps
    return _unpad(grad_padded, window_size).to(x.dtype), grad_filters


def fused_dynamic_depthwise_conv(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for images, rows, strip in filtered_strips(convolution, x):
        out[images, :, rows] = strip
    return out


def filtered_strips(convolution: FusedDynamicConv, x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the fused convolution strip by strip: (images, rows, sums [b, C, rows, W] not yet rounded to x's dtype)."""
    z, weight, bias, window_size = convolution
    dtype = accumulation_dtype(x.dtype)
    groups = weight.shape[0] // window_size**2
    matrix, column = weight.to(dtype), _column(weight, bias, dtype)
    padded = _pad(x, groups, window_size, dtype)
    for images, rows in _strips(x, groups, window_size):
        filters = _form(z[images, :, rows].to(dtype), matrix, column, window_size)
        with_border = _with_border(padded, images, rows, window_size)
        out = padded.new_zeros(*with_border.shape[:3], *filters.shape[-2:])
        _filter(out, with_border, filters)
        yield images, rows, out.flatten(1, 2)


def fused_dynamic_depthwise_conv_backward(
    convolution: FusedDynamicConv, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, weight, bias, window_size = convolution
    dtype = accumulation_dtype(x.dtype)
    groups = weight.shape[0] // window_size**2
    matrix, column = weight.to(dtype), _column(weight, bias, dtype)
    padded, grad_padded = _pad(x, groups, window_size, dtype), _pad(torch.zeros_like(x), groups, window_size, dtype)
    grad = grad.to(dtype).unflatten(1, (groups, -1))
    grad_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    grad_matrix, grad_column = torch.zeros_like(matrix), torch.zeros_like(column)
    for images, rows in _strips(x, groups, window_size):
        strip, grad_strip = z[images, :, rows].to(dtype), grad[images, ..., rows, :]
        filters = _form(strip, matrix, column, window_size)
        _scatter(_with_border(grad_padded, images, rows, window_size), grad_strip, filters)
        grad_filters = filters  # reuses the memory of the filters, which are no longer needed
        _correlate(grad_filters, _with_border(padded, images, rows, window_size), grad_strip)
        grad_filters = grad_filters.flatten(4).flatten(1, 3)  # [b, G * K * K, n]
        transposed = matrix.t().expand(len(strip), -1, -1)
        grad_z[images, :, rows] = torch.bmm(transposed, grad_filters).view(strip.shape)
        grad_matrix += torch.bmm(grad_filters, strip.flatten(2).transpose(1, 2)).sum(0)
        grad_column += grad_filters.sum((0, 2)).unsqueeze(1)
    grad_bias = grad_column.squeeze(1).to(weight.dtype if bias is None else bias.dtype)
    return _unpad(grad_padded, window_size).to(x.dtype), grad_z, grad_matrix.to(weight.dtype), grad_bias


FUSED_CONVOLUTION = ConvolutionFunctions(fused_dynamic_depthwise_conv, fused_dynamic_depthwise_conv_backward)


def _strips(x: Tensor, groups: int, window_size: int) -> Iterator[tuple[slice, slice]]:
    """Yield (images, rows) of the strips of a batch: rows of one image, or several whole images if they are small."""
    batch, channels, height, width = x.shape
    if x.is_cpu:
        pixels = max(
            FILTERS_IN_STRIP // (groups * window_size**2), ELEMENTS_PER_THREAD * torch.get_num_threads() // channels
        )
    else:
        pixels = rows_of_strip(x, window_size**2 * (2 * groups + channels) + 3 * channels) * width * batch
    rows = min(height, max(1, pixels // width))
    images = max(1, pixels // (height * width))
    for b in range(0, batch, images):
        for y in range(0, height, rows):
            yield slice(b, min(b + images, batch)), slice(y, min(y + rows, height))


def _pad(x: Tensor, groups: int, window_size: int, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] -> [B, G, C // G, H + K - 1, W + K - 1] with a border of zeros, contiguous."""
    batch, channels, height, width = x.shape
    border = window_size - 1
    padded = x.new_zeros(batch, groups, channels // groups, height + border, width + border, dtype=dtype)
    r = window_size // 2
    padded[..., r : r + height, r : r + width] = x.unflatten(1, (groups, -1))
    return padded


def _unpad(padded: Tensor, window_size: int) -> Tensor:
    r = window_size // 2
    height, width = padded.shape[-2] - 2 * r, padded.shape[-1] - 2 * r
    return padded[..., r : r + height, r : r + width].flatten(1, 2)


def _column(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias as [G * K * K, 1]."""
    return (weight.new_zeros(len(weight)) if bias is None else bias).to(dtype).unsqueeze(1)


def _with_border(padded: Tensor, images: slice, rows: slice, window_size: int) -> Tensor:
    """The part of a padded image in which the windows of a strip's pixels lie."""
    return padded[images, ..., rows.start : rows.stop + window_size - 1, :]


def _form(z: Tensor, weight: Tensor, bias: Tensor, window_size: int) -> Tensor:
    """Filters [b, G, K, K, rows, W] from z [b, D, rows, W]."""
    matrix = weight.expand(len(z), -1, -1)
    filters = torch.baddbmm(bias.unsqueeze(0), matrix, z.flatten(2))
    return filters.view(len(z), -1, window_size, window_size, *z.shape[2:])


def _filter(out: Tensor, padded: Tensor, filters: Tensor) -> None:
    """Add to out [b, G, C // G, rows, W] the sum over taps of filter times shifted image."""
    height, width = out.shape[-2:]
    if not out.is_cpu:  # three operators instead of one per tap
        out += (_shifted(padded, height, width) * filters.unsqueeze(2)).sum((3, 4))
        return
    for i, j in product(range(filters.shape[2]), repeat=2):
        out.addcmul_(padded[..., i : i + height, j : j + width], filters[:, :, i, j].unsqueeze(2))


def _shifted(padded: Tensor, height: int, width: int) -> Tensor:
    """The image shifted by each tap, a view: [b, G, C // G, K, K, rows, W]."""
    return padded.unfold(3, height, 1).unfold(4, width, 1)


def _scatter(grad_padded: Tensor, grad: Tensor, filters: Tensor) -> None:
    """The transpose of `_filter`: add to the padded image's gradient."""
    height, width = grad.shape[-2:]
    for i, j in product(range(filters.shape[2]), repeat=2):
        grad_padded[..., i : i + height, j : j + width].addcmul_(grad, filters[:, :, i, j].unsqueeze(2))


def _correlate(grad_filters: Tensor, padded: Tensor, grad: Tensor) -> None:
    """Fill [b, G, K, K, rows, W] with the sum over a group's channels of gradient times shifted image."""
    height, width = grad.shape[-2:]
    shifted = _shifted(padded, height, width)
    for c in range(grad.shape[2]):
        factors = shifted[:, :, c], grad[:, :, c, None, None]
        if c == 0:
            torch.mul(*factors, out=grad_filters)
        else:
            grad_filters.addcmul_(*factors)
