"""Channel attention without gradients in three CUDA kernels. `kernels/channel_attention.cu` has the design."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops.backends.cuda import halo_tile
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import (
    PIXELS,
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
from dlgsanet.ops.backends.cuda.modules import Instance, Launch
from dlgsanet.ops.backends.torch.frozen import derived
from dlgsanet.ops.backends.torch.planar import NORM_EPS
from dlgsanet.ops.cached_tensors import cached_tensors
from dlgsanet.ops.records import ChannelAttention
from dlgsanet.ops.windows import pieces

EXACT, ROUNDED = "channel attention", "channel attention with rounded factors"  # to TF32, or to 16 bits like x

FEATURE_ROW = {2: PIXELS // 2 + 4, 4: PIXELS + 20}  # kFeatureStride of `kernels/hidden_*.h`, by the same
MATRIX_THREADS = 512
FEW_CHANNELS = 48  # with which two blocks fit into a multiprocessor in float32, and more values into a chunk


def path(x: Tensor) -> str:
    """The kernels that are exact enough."""
    return EXACT if halo_tile.exact(x) else ROUNDED


def takes(layer: ChannelAttention, x: Tensor) -> bool:
    """Whether the kernels are made for these dtypes and sizes."""
    channels, heads = sizes(layer)
    return layer.activation == "relu" and channels // heads <= ROWS and halo_tile.serves(x, *layer[:6])


def sizes(layer: ChannelAttention) -> tuple[int, int]:
    """Its channels and heads, which the kernels are compiled for."""
    return len(layer.norm_weight), len(layer.temperature)


def channel_attention(layer: ChannelAttention, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernels, `EXACT` or `ROUNDED`."""
    exact = (of or path(x)) == EXACT
    of_keys, of_values = derived(lambda: pack(layer, exact), layer.qkv_weight, *layer[:2], layer.depthwise, key=exact)
    batch, _, height, width = x.shape
    channels, heads = sizes(layer)
    x, strides, paired = halo_tile.readable(x)
    down = axis(height, layer.window, TILE_HEIGHT, x.device)
    across = axis(width, layer.window, TILE_WIDTH, x.device)
    tables, windows = (down.table, across.table), (down.windows, across.windows)
    launches = plan(x.shape, strides, x.dtype, x.device, heads, windows, exact, paired)
    share = channels // heads
    sums = torch.empty(
        (batch, down.pieces, across.pieces, heads, share + 2, share), dtype=torch.float32, device=x.device
    )
    of_matrix = whole(channels, ROWS), math.prod(chunks_of_values(channels, x.dtype)) * ROWS
    matrices = torch.empty((batch, *windows, *of_matrix), dtype=torch.float32, device=x.device)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launches.sums(x, of_keys, *tables, sums)
    launches.matrices(sums, layer.temperature.contiguous(), layer.proj_out.contiguous(), *tables, matrices)
    launches.values(x, of_values, matrices, *tables, out)
    return out


def pack(layer: ChannelAttention, exact: bool) -> tuple[Tensor, Tensor]:
    """The weights of q and k, and those of v, as the kernels read them: chunks of words of 32 bits.

    exact: not in TF32.
    """
    dtype, (channels, heads) = layer.qkv_weight.dtype, sizes(layer)
    at_once, share = heads_in_chunk(channels, heads), channels // heads
    norm_weight, norm_bias, qkv, depthwise = (
        t.detach().float() for t in (*layer[:2], layer.qkv_weight.flatten(1), layer.depthwise.flatten(1))
    )
    parts, chunks = chunks_of_values(channels, dtype)

    def of_keys(t: Tensor) -> Tensor:
        """[2 * channels, ...] -> [chunks, 2, ROWS, ...]: whole heads, then zeros."""
        in_heads = padded(t.unflatten(0, (2, heads, share)), 2, whole(heads, at_once), share, *t.shape[1:])
        in_chunks = in_heads.unflatten(1, (-1, at_once)).flatten(2, 3).transpose(0, 1)
        return padded(in_chunks, *in_chunks.shape[:2], ROWS, *t.shape[1:])

    def of_values(t: Tensor) -> Tensor:
        """[channels, ...] -> [chunks, parts, ROWS, ...]"""
        return padded(t, chunks * parts * ROWS, *t.shape[1:]).unflatten(0, (chunks, parts, ROWS))

    weight, bias, filters = qkv * norm_weight, qkv @ norm_bias, halo_tile.taps(depthwise, dtype)

    def packed(in_chunks: Callable[[Tensor], Tensor], of: slice) -> Tensor:
        matrices = halo_tile.projection(in_chunks(weight[of]), terms_of(dtype))
        return halo_tile.pack(halo_tile.factors(matrices, dtype, exact), in_chunks(bias[of]), in_chunks(filters[of]))

    return packed(of_keys, slice(2 * channels)), packed(of_values, slice(2 * channels, None))


def heads_in_chunk(channels: int, heads: int) -> int:
    return min(heads, ROWS * heads // channels)


def chunks_of_values(channels: int, dtype: torch.dtype) -> tuple[int, int]:
    """How many times 16 channels a chunk has, and the number of chunks: as few as registers allow."""
    parts = math.ceil(channels / ROWS)
    most = 3 if dtype.itemsize == 2 and channels <= FEW_CHANNELS else 1
    chunks = math.ceil(parts / most)
    return math.ceil(parts / chunks), chunks


class Axis(NamedTuple):
    """An axis of an image.

    Attributes:
        table: int32, as `Axis` in the kernels' source describes it.
        pieces: the number of pieces, which lie in the same windows and in one tile each.
        windows: the number of windows.
    """

    table: Tensor
    pieces: int
    windows: int


@cached_tensors(maxsize=128)
def axis(size: int, window: int | None, tile: int, device: torch.device) -> Axis:
    found = pieces(size, window, grid=tile)
    of_tiles, of_windows = [], [[len(found), 0] for _ in range(found[-1].last_window + 1)]
    for number, piece in enumerate(found):
        if piece.start % tile == 0:
            of_tiles.append(number)
        for which in range(piece.first_window, piece.last_window + 1):
            first, _ = of_windows[which]
            of_windows[which] = [min(first, number), number + 1]
    numbers = [*of_tiles, len(found), *itertools.chain(*found, *of_windows)]
    return Axis(torch.tensor(numbers, dtype=torch.int32, device=device), len(found), len(of_windows))


class Launches(NamedTuple):
    """The launches of the kernels, in their order."""

    sums: Launch
    matrices: Launch
    values: Launch


@functools.lru_cache(maxsize=1024)  # images of every size may come
def plan(
    shape: torch.Size,
    strides: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    heads: int,
    windows: tuple[int, int],
    exact: bool,
    paired: bool,
) -> Launches:
    """The launches for tensors of these sizes."""
    batch, channels, height, width = shape
    parts, chunks = chunks_of_values(channels, dtype)
    at_once, share = heads_in_chunk(channels, heads), channels // heads
    plane, item = halo_tile.plane(dtype), dtype.itemsize
    of_sums = 2 * ROWS * (plane + FEATURE_ROW[item])
    factors = parts * ROWS // terms_of(dtype) * math.ceil(channels / ROWS) * WARP * 4
    of_values = parts * (ROWS * plane + halo_tile.value_rows(dtype) * VALUE_ROW) + factors
    of_matrices = MATRIX_THREADS + (share + 2) * share + share**2
    constants = halo_tile.constants(dtype, channels, exact) | {
        "BLOCKS": 2 if item == 2 or channels <= FEW_CHANNELS else 1,
        "CHUNKS": math.ceil(heads / at_once),
        "HEADS": heads,
        "HEADS_IN_CHUNK": at_once,
        "VALUE_PARTS": parts,
        "VALUE_CHUNKS": chunks,
        "MATRIX_THREADS": MATRIX_THREADS,
        "NORM_EPS": f"{NORM_EPS}f",
        "SHARED_ELEMENTS": of_sums,
        "VALUE_ELEMENTS": of_values,
    }
    module = cuda_modules.load(Instance("channel_attention.cu", tuple(constants.items())), device)
    blocks, of_image = halo_tile.tiles(batch, height, width), (*strides, height, width)
    of_windows = batch * windows[0] * windows[1] * heads
    return Launches(
        Launch(module, "attention_sums", blocks, THREADS, 4 * of_sums, of_image),
        Launch(module, "attention_matrices", of_windows, MATRIX_THREADS, 4 * of_matrices, (height, width, *windows)),
        Launch(module, "attention_values", blocks, THREADS, 4 * of_values, (*of_image, paired, *windows)),
    )
