"""The whole layers for inference on CPUs, one image at a time, in strips of rows.

Inside, images are [H, W, C] (channels last). The hidden tensors of a strip are freed before the next strip.

Axes: H height, W width, C channels, D channels of the feature that filters are formed from, n pixels of a strip.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.backends.torch import dynamic_conv
from dlgsanet.ops.backends.torch.cells import Cells
from dlgsanet.ops.backends.torch.mixing import in_heads, mixing_matrices
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import ChannelAttention, GatedFeedForward, Layer, LocalAttention, dynamic_conv_of

# The hidden tensor of a strip: 4 MB in float32.
ELEMENTS_IN_STRIP = 1 << 20
# Fewest rows of a strip: the neighbouring rows that a 3x3 convolution needs are computed twice.
FEWEST_ROWS = 8


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    def compute(image: Tensor, out: Tensor) -> None:
        for rows in _strips(image, len(layer.proj_in)):
            hidden = _normalise_project_filter(layer, layer.proj_in, image, rows)
            a, b = hidden.chunk(2, -1)
            _add_projection(image, out, rows, F.gelu(a).mul_(b), layer.proj_out.flatten(1))

    return _image_by_image(compute, x)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """Overlapping windows cost no more than the image itself, because sums are formed over `Cells`."""
    channels, dtype = x.shape[1], accumulation_dtype(x.dtype)

    def compute(image: Tensor, out: Tensor) -> None:
        height, width, _ = image.shape
        cells = Cells(height, width, layer.window, _rows(image, 3 * channels))
        values = torch.empty_like(image)
        grams = x.new_zeros(*cells.windows, channels, channels, dtype=dtype)
        squares = x.new_zeros(*cells.windows, 2 * channels, dtype=dtype)
        for rows, windows in cells.bands:
            qkv = _normalise_project_filter(layer, layer.qkv_weight, image, rows)
            values[rows] = qkv[..., 2 * channels :]
            qk = [qkv[:, columns, : 2 * channels].flatten(0, 1).to(dtype) for columns in cells.columns]
            grams[windows] += cells.sum_across(torch.stack([m[:, :channels].t() @ m[:, channels:] for m in qk]))
            squares[windows] += cells.sum_across(torch.stack([m.square().sum(0) for m in qk]))
        q_norms, k_norms = squares.sqrt().flatten(0, 1).chunk(2, -1)
        mixing = mixing_matrices(layer, in_heads(grams.flatten(0, 1), len(layer.temperature)), q_norms, k_norms)
        mixing = mixing.unflatten(0, cells.windows)
        for rows, windows in cells.bands:
            matrices = cells.average_across(mixing[windows].mean(0))
            for columns, matrix in zip(cells.columns, matrices, strict=True):
                _add_projection(image[:, columns], out[:, columns], rows, values[rows, columns], matrix)

    return _image_by_image(compute, x)


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    """Between the first and the last projection the image is [C, H, W], so that its shifts are contiguous."""
    channels, features = x.shape[1], len(layer.squeeze_weight)
    proj_in, squeeze, bias = layer.proj_in.flatten(1), layer.squeeze_weight.flatten(1), layer.squeeze_bias.unsqueeze(1)

    def compute(image: Tensor, out: Tensor) -> None:
        height, width, _ = image.shape
        planar, z = image.new_empty(channels, height, width), image.new_empty(features, height, width)
        for rows in _strips(image, channels):
            y = proj_in @ _normalise(layer, image[rows]).flatten(0, 1).t()
            planar[:, rows] = y.view(channels, -1, width)
            z[:, rows] = torch.addmm(bias, squeeze, y).view(features, -1, width)
        padding = layer.window_size // 2
        z = F.conv2d(z, layer.spatial_weight, layer.spatial_bias, padding=padding, groups=features).unsqueeze(0)
        for _, rows, y in dynamic_conv.filtered_strips(dynamic_conv_of(layer, z), planar.unsqueeze(0)):
            _add_projection(image, out, rows, y.view(channels, -1).t().to(x.dtype), layer.proj_out.flatten(1))

    return _image_by_image(compute, x)


def _image_by_image(compute: Callable[[Tensor, Tensor], None], x: Tensor) -> Tensor:
    """Call ``compute(image [H, W, C], out [H, W, C])`` for each image of x [B, C, H, W]; return out [B, C, H, W]."""
    images = x.movedim(1, -1).contiguous()
    out = torch.empty_like(images)
    for image, result in zip(images, out, strict=True):
        compute(image, result)
    return out.movedim(-1, 1)


def _rows(image: Tensor, hidden: int) -> int:
    """Rows of a strip with `hidden` hidden channels."""
    elements = max(ELEMENTS_IN_STRIP, dynamic_conv.ELEMENTS_PER_THREAD * torch.get_num_threads())
    return max(FEWEST_ROWS, elements // (image.shape[1] * hidden))


def _strips(image: Tensor, hidden: int) -> Iterator[slice]:
    height, rows = len(image), _rows(image, hidden)
    return (slice(y, min(y + rows, height)) for y in range(0, height, rows))


def _normalise(layer: Layer, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.norm_weight.shape, layer.norm_weight, layer.norm_bias, LAYER_NORM_EPS)


def _normalise_project_filter(
    layer: ChannelAttention | GatedFeedForward, projection: Tensor, image: Tensor, rows: slice
) -> Tensor:
    """Some rows [rows, W, hidden] of ``depthwise_3x3(projection(norm(image)))``."""
    start, stop = max(rows.start - 1, 0), min(rows.stop + 1, len(image))
    hidden = F.linear(_normalise(layer, image[start:stop]), projection.flatten(1)).unsqueeze(0).movedim(-1, 1)
    # The zero padding is correct only at the border of the image. Elsewhere the rows next to it are dropped.
    filtered = F.conv2d(hidden, layer.depthwise, padding=1, groups=len(layer.depthwise))
    return filtered.movedim(1, -1).squeeze(0)[rows.start - start : rows.stop - start]


def _add_projection(image: Tensor, out: Tensor, rows: slice, hidden: Tensor, matrix: Tensor) -> None:
    """Write ``image + matrix @ hidden`` to some rows of out; hidden is [..., channels], in the order of the pixels."""
    torch.add(image[rows], F.linear(hidden, matrix).view(image[rows].shape), out=out[rows])
