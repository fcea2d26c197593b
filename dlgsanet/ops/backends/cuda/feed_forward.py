"""The gated feed-forward layer without gradients in one CUDA kernel. `kernels/gated_feed_forward.cu` has the design."""

import functools
import math

import torch
from torch import Tensor

from dlgsanet.ops import autocast, tf32
from dlgsanet.ops.backends.cuda import halo_tile
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import (
    BANKS,
    COLUMNS,
    MOST_CHANNELS,
    PIXELS,
    PLANE,
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
from dlgsanet.ops.backends.torch.frozen import KEPT, derived
from dlgsanet.ops.records import GatedFeedForward

TWO_BLOCKS = 48  # channels, with which two blocks fit into a multiprocessor
HALVES, FILTER = 2, 12  # numbers of a filter: nine taps and padding

EXACT, ROUNDED = "gated feed-forward", "gated feed-forward with rounded factors"  # to TF32, or to 16 bits like x


def path(x: Tensor) -> str:
    """The kernel that is exact enough: under autocast products of float32 may have fewer bits than TF32."""
    exact = x.dtype == torch.float32 and not tf32.allowed_in_matrix_products() and not autocast.is_on(x.device.type)
    return EXACT if exact else ROUNDED


def takes(layer: GatedFeedForward, x: Tensor) -> bool:
    """Whether the kernel is made for these dtypes and sizes."""
    dtypes = {x.dtype, *(t.dtype for t in layer)}
    result = x.dtype in (torch.float32, autocast.dtype_of(x))
    return len(dtypes) == 1 and result and x.shape[1] <= MOST_CHANNELS and x.dtype != torch.float64


def sizes(layer: GatedFeedForward) -> tuple[int, int]:
    """Its channels and hidden channels, which the kernels are compiled for."""
    channels, hidden = layer.proj_out.shape[:2]
    return channels, hidden


def timed(layer: GatedFeedForward, x: Tensor) -> tuple[object, ...]:
    """What the time depends on, apart from the pixels. Weights that are not frozen are packed in every call."""
    return path(x), x.dtype, autocast.dtype_of(x), *sizes(layer), hasattr(layer.proj_out, KEPT)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernel, `EXACT` or `ROUNDED`."""
    exact = (of or path(x)) == EXACT
    weights = derived(lambda: pack(layer, exact), layer.proj_out, *layer[:4], key=exact)
    x, strides, paired = halo_tile.readable(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    plan(x.shape, strides, x.dtype, x.device, layer.proj_out.shape[1], exact, paired)(x, weights, out)
    return out


def pack(layer: GatedFeedForward, exact: bool) -> Tensor:
    """The weights as a kernel reads them, in words of 32 bits and chunks of hidden channels; exact: not in TF32."""
    dtype, terms = layer.proj_out.dtype, terms_of(layer.proj_out.dtype)
    norm_weight, norm_bias, *weights = (t.detach().float() for t in layer)
    proj_in, depthwise, proj_out = (t.flatten(1) for t in weights)
    channels, hidden = proj_out.shape
    chunks = math.ceil(hidden / ROWS)

    def in_chunks(t: Tensor) -> Tensor:
        """[HALVES * hidden, ...] -> [chunks, HALVES, ROWS, ...]"""
        halves = t.unflatten(0, (HALVES, hidden))
        return padded(halves, HALVES, chunks * ROWS, *t.shape[1:]).unflatten(1, (chunks, ROWS)).transpose(0, 1)

    first = halo_tile.projection(in_chunks(proj_in * norm_weight), terms)
    second = padded(proj_out, whole(channels, ROWS), chunks * ROWS)
    second = second.view(-1, ROWS, chunks, ROWS // terms, terms).permute(2, 3, 0, 1, 4).flatten(1, 2)
    matrices = torch.cat([first, second], 1)
    if dtype.itemsize == 2:
        matrices = matrices.to(dtype)
        filters = halo_tile.pairs(torch.cat([depthwise[:hidden], depthwise[hidden:] / 2]), dtype)
    else:
        matrices = matrices if exact else _to_tf32(matrices)
        filters = padded(depthwise, len(depthwise), FILTER)
    return halo_tile.pack(matrices, in_chunks(proj_in @ norm_bias), in_chunks(filters))


def _to_tf32(x: Tensor) -> Tensor:
    """Rounded to 11 bits."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


@functools.lru_cache(maxsize=1024)  # images of every size may come
def plan(
    shape: torch.Size,
    strides: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    hidden: int,
    exact: bool,
    paired: bool,
) -> Launch:
    """The launch for tensors of these sizes."""
    batch, channels, height, width = shape
    if dtype.itemsize == 2:
        source, elements = "gated_feed_forward_16bit.cu", HALVES * ROWS * PLANE + ROWS // 2 * VALUE_ROW
    else:
        source, halo = "gated_feed_forward.cu", whole((TILE_WIDTH + 2) * (TILE_HEIGHT + 2), THREADS // WARP * COLUMNS)
        elements = ROWS * (HALVES * (halo + BANKS) + PIXELS + BANKS)
    constants = halo_tile.constants(dtype, channels) | {
        "CHUNKS": math.ceil(hidden / ROWS),
        "BLOCKS": 2 if channels <= TWO_BLOCKS else 1,
        "EXACT": int(exact),
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance(source, tuple(constants.items())), device)
    blocks = halo_tile.tiles(batch, height, width)
    return Launch(module, "gated_feed_forward", blocks, THREADS, 4 * elements, (*strides, height, width, paired))
