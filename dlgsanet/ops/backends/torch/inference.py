"""The whole layers for inference on CPUs, one image at a time, in strips of rows.

Images are [H, W, C] (channels last) within; a strip's hidden tensors are used at once and let go.

Axes: H height, W width, C channels, D channels of the feature that filters are formed from, n pixels of a strip.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops.backends.reference import LAYER_NORM_EPS, accumulation_dtype
from dlgsanet.ops.backends.torch import dynamic_conv
from dlgsanet.ops.backends.torch.cells import Cells
from dlgsanet.ops.backends.torch.mixing import mixing_matrices

# The hidden tensor of a strip: 4 MB in float32.
ELEMENTS_IN_STRIP = 1 << 20
# Rows of a strip at the least: those above and below it, which a 3x3 convolution needs, are computed twice.
FEWEST_ROWS = 8


def gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    def layer(image: Tensor, out: Tensor) -> None:
        for rows in _strips(image, len(proj_in)):
            hidden = _normalise_project_filter(image, rows, norm_weight, norm_bias, proj_in, depthwise)
            a, b = hidden.chunk(2, -1)
            _add_projection(image, out, rows, F.gelu(a).mul_(b), proj_out.flatten(1))

    return _image_by_image(layer, x)


def channel_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
    window: int | None,
) -> Tensor:
    """As the reference; see `Cells` for how windows that overlap cost no more than the image itself."""

    channels, dtype = x.shape[1], accumulation_dtype(x.dtype)

    def layer(image: Tensor, out: Tensor) -> None:
        height, width, _ = image.shape
        cells = Cells(height, width, window, _rows(image, 3 * channels))
        values = torch.empty_like(image)
        grams = torch.zeros(*cells.windows, channels, channels, dtype=dtype)
        squares = torch.zeros(*cells.windows, 2 * channels, dtype=dtype)
        for rows, windows in cells.bands:
            qkv = _normalise_project_filter(image, rows, norm_weight, norm_bias, qkv_weight, depthwise)
            values[rows] = qkv[..., 2 * channels :]
            qk = [qkv[:, columns, : 2 * channels].flatten(0, 1).to(dtype) for columns in cells.columns]
            grams[windows] += cells.sum_across(torch.stack([m[:, :channels].t() @ m[:, channels:] for m in qk]))
            squares[windows] += cells.sum_across(torch.stack([m.square().sum(0) for m in qk]))
        q_norms, k_norms = squares.sqrt().flatten(0, 1).chunk(2, -1)
        mixing = mixing_matrices(grams.flatten(0, 1), q_norms, k_norms, temperature, proj_out, activation, topk_ratio)
        mixing = mixing.unflatten(0, cells.windows)
        for rows, windows in cells.bands:
            matrices = cells.average_across(mixing[windows].mean(0))
            for columns, matrix in zip(cells.columns, matrices, strict=True):
                _add_projection(image[:, columns], out[:, columns], rows, values[rows, columns], matrix)

    return _image_by_image(layer, x)


def dynamic_local_attention(
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
    """As the reference; from the first projection to the last the image is planar, which its shifts want."""
    channels, features = x.shape[1], len(squeeze_weight)

    def layer(image: Tensor, out: Tensor) -> None:
        height, width, _ = image.shape
        planar, z = image.new_empty(channels, height, width), image.new_empty(features, height, width)
        for rows in _strips(image, channels):
            y = proj_in.flatten(1) @ _normalise(image[rows], norm_weight, norm_bias).flatten(0, 1).t()
            planar[:, rows] = y.view(channels, -1, width)
            z[:, rows] = torch.addmm(squeeze_bias.unsqueeze(1), squeeze_weight.flatten(1), y).view(features, -1, width)
        z = F.conv2d(z, spatial_weight, spatial_bias, padding=window_size // 2, groups=features)
        filters = (filter_weight.flatten(1), filter_bias, window_size)
        for _, rows, y in dynamic_conv.filtered_strips(planar.unsqueeze(0), z.unsqueeze(0), *filters):
            _add_projection(image, out, rows, y.view(channels, -1).t().to(x.dtype), proj_out.flatten(1))

    return _image_by_image(layer, x)


def _image_by_image(layer: Callable[[Tensor, Tensor], None], x: Tensor) -> Tensor:
    """Call ``layer(image [H, W, C], out [H, W, C])`` for each image of x [B, C, H, W]; return all out [B, C, H, W]."""
    images = x.movedim(1, -1).contiguous()
    out = torch.empty_like(images)
    for image, result in zip(images, out, strict=True):
        layer(image, result)
    return out.movedim(-1, 1)


def _rows(image: Tensor, hidden: int) -> int:
    """How many rows make a strip with so many hidden channels."""
    elements = max(ELEMENTS_IN_STRIP, dynamic_conv.ELEMENTS_PER_THREAD * torch.get_num_threads())
    return max(FEWEST_ROWS, elements // (image.shape[1] * hidden))


def _strips(image: Tensor, hidden: int) -> Iterator[slice]:
    height, rows = len(image), _rows(image, hidden)
    return (slice(y, min(y + rows, height)) for y in range(0, height, rows))


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)


def _normalise_project_filter(
    image: Tensor, rows: slice, norm_weight: Tensor, norm_bias: Tensor, projection: Tensor, depthwise: Tensor
) -> Tensor:
    """Some rows [rows, W, hidden] of ``depthwise_3x3(projection(norm(image)))``."""
    start, stop = max(rows.start - 1, 0), min(rows.stop + 1, len(image))
    hidden = F.linear(_normalise(image[start:stop], norm_weight, norm_bias), projection.flatten(1))
    # Zeros beside the rows at hand are right only at the image's border; elsewhere those rows are not kept.
    filtered = F.conv2d(hidden.unsqueeze(0).movedim(-1, 1), depthwise, padding=1, groups=len(depthwise))
    return filtered.movedim(1, -1).squeeze(0)[rows.start - start : rows.stop - start]


def _add_projection(image: Tensor, out: Tensor, rows: slice, hidden: Tensor, matrix: Tensor) -> None:
    """Write image + matrix @ hidden to some rows of out; hidden [..., its channels], in the order of the pixels."""
    torch.add(image[rows], F.linear(hidden, matrix).view(image[rows].shape), out=out[rows])
