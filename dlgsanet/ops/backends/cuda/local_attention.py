"""Dynamic local attention without gradients in two CUDA kernels. `kernels/local_attention.cu` has the design."""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops.backends.cuda import halo_tile, local_filters
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import (
    COLUMNS,
    ROWS,
    THREADS,
    TILE_HEIGHT,
    TILE_WIDTH,
    VALUE_ROW,
    WARP,
    padded,
    terms_of,
    whole,
)
from dlgsanet.ops.backends.cuda.local_filters import AT_ONCE, MARGIN, QUAD
from dlgsanet.ops.backends.cuda.modules import Instance, Launch
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.backends.torch.frozen import derived
from dlgsanet.ops.records import LocalAttention, map_tensors

EXACT, ROUNDED = "local attention", "local attention with rounded factors"  # to TF32, or to 16 bits like x

OWN = 2  # groups of 8 pixels that a warp projects


def path(x: Tensor) -> str:
    """The kernels that are exact enough."""
    return EXACT if halo_tile.exact(x) else ROUNDED


def takes(layer: LocalAttention, x: Tensor) -> bool:
    """Whether the kernels are made for these dtypes and sizes."""
    channels, groups, features, window = sizes(layer)
    share = channels // groups
    fits = local_filters.serves(window, features, share)
    return fits and share * x.itemsize % 4 == 0 and halo_tile.serves(x, *layer[:-1])


def sizes(layer: LocalAttention) -> tuple[int, int, int, int]:
    """Its channels, groups, features and window, which the kernels are compiled for."""
    window, features = layer.window_size, len(layer.squeeze_bias)
    return len(layer.norm_weight), len(layer.filter_bias) // window**2, features, window


def dynamic_local_attention(layer: LocalAttention, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernels, `EXACT` or `ROUNDED`."""
    exact = (of or path(x)) == EXACT
    of_projection, weights = derived(lambda: pack(layer, exact), layer.proj_out, *layer[:-2], key=exact)
    channels, groups, features, window = sizes(layer)

    def compute(x: Tensor) -> Tensor:
        x, strides, paired = halo_tile.readable(x)
        batch, _, height, width = x.shape
        rows, columns = whole(height, TILE_HEIGHT) + window - 1, whole(width, TILE_WIDTH) + 2 * MARGIN
        projected = torch.empty((batch, channels + features, rows, columns), dtype=x.dtype, device=x.device)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launches = plan(x.shape, strides, x.dtype, x.device, groups, features, window, exact, paired)
        launches.projection(x, of_projection, projected)
        launches.attention(projected, weights, x, out)
        return out

    return planar.in_strips(compute, x, halo=window // 2, floats=1.5 * channels)


def pack(layer: LocalAttention, exact: bool) -> tuple[Tensor, Tensor]:
    """The weights as each kernel reads them, in words of 32 bits; exact: not in TF32."""
    dtype, terms = layer.proj_out.dtype, terms_of(layer.proj_out.dtype)
    _, groups, features, window = sizes(layer)
    layer = map_tensors(layer, lambda t: t.detach().float())
    weight, bias = planar.fold_squeezed(layer)

    def matrices(weight: Tensor) -> Tensor:
        rows = padded(weight.flatten(1), whole(len(weight), ROWS), weight.shape[1]).view(1, -1, ROWS, weight.shape[1])
        return halo_tile.words(halo_tile.factors(halo_tile.projection(rows, terms), dtype, exact))

    # Terms of products: features, those of a lane in two halves.
    filters = torch.cat([layer.filter_weight.flatten(1), layer.filter_bias[:, None]], 1)
    filters, steps = filters.view(groups, window, window, -1), features // terms + 1
    if local_filters.applies_by_products(dtype, weight.device):  # columns: taps of a row, and taps after a zero
        columns = torch.stack(
            [padded(F.pad(filters, (0, 0, n, 0)), groups, window, COLUMNS, steps * terms) for n in (0, 1)]
        )
        columns = halo_tile.factors(columns, dtype, exact).view(2, groups, window, COLUMNS, steps, 2, 4, 2)
        lanes = columns.permute(1, 2, 4, 3, 6, 0, 5, 7).contiguous().view(torch.int32)
    else:  # columns: two taps of four rows
        passes, pairs = math.ceil(window / 4), math.ceil(window / 2)
        columns = padded(filters, groups, 4 * passes, 2 * pairs, steps * terms)
        columns = halo_tile.factors(columns, dtype, exact).view(groups, passes, 4, pairs, 2, steps, 2, 4, terms // 8)
        lanes = columns.permute(0, 1, 2, 4, 7, 5, 3, 6, 8).reshape(groups, passes, WARP, -1).view(torch.int32)
        lanes = F.pad(lanes, (0, -lanes.shape[-1] % QUAD)).unflatten(-1, (-1, QUAD)).transpose(2, 3)
    spatial = layer.spatial_weight.flatten(0, 1)
    taps = banded(spatial, dtype) if dtype.itemsize == 2 else padded(spatial, features, window, whole(window, QUAD))
    floats = (t.flatten().view(torch.int32) for t in (taps, layer.spatial_bias))
    of_projection = matrices(weight), padded(bias, whole(len(bias), ROWS)).view(torch.int32)
    of_attention = lanes.flatten(), matrices(layer.proj_out), *floats
    return torch.cat([t.flatten() for t in of_projection]), torch.cat([t.flatten() for t in of_attention])


def banded(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [features, window, words] with the taps of a row in each column, as lanes read them.

    Args:
        filters: [features, window, window], in float32.
    """
    window = filters.shape[-1]
    before = COLUMNS - 1 + MARGIN - window // 2  # zeros, so that entry (k, n) is that of 7 + k - n
    entries = F.pad(filters, (before, ROWS + COLUMNS - 1 - before - window))
    rows, columns = torch.arange(ROWS, device=filters.device), torch.arange(COLUMNS, device=filters.device)
    matrices = entries[..., COLUMNS - 1 + rows[:, None] - columns].unflatten(-2, (2, 4, 2))  # two halves, lanes, pairs
    return matrices.permute(0, 1, 5, 3, 2, 4).to(dtype).flatten(2).view(torch.int32)


class Launches(NamedTuple):
    """The launches of the kernels, in their order."""

    projection: Launch
    attention: Launch


@functools.lru_cache(maxsize=1024)  # images of every size may come
def plan(
    shape: torch.Size,
    strides: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    groups: int,
    features: int,
    window: int,
    exact: bool,
    paired: bool,
) -> Launches:
    """The launches for tensors of these sizes."""
    batch, channels, height, width = shape
    share = channels // groups
    of_filters = local_filters.sizes(dtype, device, window, share, features)
    values = whole(channels, terms_of(dtype)) * dtype.itemsize // 4 * VALUE_ROW
    elements = max(AT_ONCE * share, features) * of_filters.plane + of_filters.features + values
    constants = halo_tile.constants(dtype, channels, exact) | of_filters.constants
    constants |= {
        "ROUNDS": math.ceil(groups / AT_ONCE),
        "OWN": OWN,
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance("local_attention.cu", tuple(constants.items())), device)
    of_image = *strides, height, width
    bordered = (whole(height, TILE_HEIGHT) + window - 1) * (whole(width, TILE_WIDTH) + 2 * MARGIN)
    blocks = batch * math.ceil(bordered / (COLUMNS * OWN * THREADS // WARP))
    tiles = halo_tile.tiles(batch, height, width)
    return Launches(
        Launch(module, "local_projection", blocks, THREADS, 0, of_image),
        Launch(module, "local_attention", tiles, THREADS, 4 * elements, (*of_image, paired)),
    )
