"""The gated feed-forward layer in CUDA kernels. The sources `kernels/gated_feed_forward*.cu` have the design.

Weights are packed for them in one more kernel. The layer in training keeps x and its parameters alone.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends.cuda import halo_tile
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import (
    PIXELS,
    ROWS,
    THREADS,
    VALUE_ROW,
    WARP,
    plane_of_pixels,
    terms_of,
    whole,
)
from dlgsanet.ops.backends.cuda.modules import Instance, Launch
from dlgsanet.ops.backends.torch.frozen import derived
from dlgsanet.ops.records import GatedFeedForward

TWO_BLOCKS = 48  # channels, with which two blocks fit into a multiprocessor
HALVES, TAPS = 2, 9
BORDER = 2  # of the tile in which the backward pass needs hidden channels
TERMS = 8  # of its products, which are in TF32 for all dtypes
SHARING = 0.25  # what it takes to share a tile, in times of a tile: by prediction, a fifth for its pixels and the rest

EXACT, ROUNDED = "gated feed-forward", "gated feed-forward with rounded factors"  # to TF32, or to 16 bits like x
BACKWARD = {EXACT: "gated feed-forward backward", ROUNDED: "gated feed-forward backward with rounded factors"}


def path(x: Tensor) -> str:
    """The kernel that is exact enough."""
    return EXACT if halo_tile.exact(x) else ROUNDED


def takes(layer: GatedFeedForward, x: Tensor) -> bool:
    """Whether the kernels are made for these dtypes and sizes."""
    return halo_tile.serves(x, *layer)


def trains(channels: int, device: torch.device) -> bool:
    """Whether a block of the backward pass fits into a multiprocessor."""
    return 4 * _elements_backward(channels) <= cuda_modules.shared_memory_limit(device)


def sizes(layer: GatedFeedForward) -> tuple[int, int]:
    """Its channels and hidden channels, which the kernels are compiled for."""
    channels, hidden = layer.proj_out.shape[:2]
    return channels, hidden


def gated_feed_forward(layer: GatedFeedForward, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernel, `EXACT` or `ROUNDED`."""
    exact = (of or path(x)) == EXACT
    x, strides, paired = halo_tile.readable(x)
    pack, run = plan(x.shape, strides, x.dtype, x.device, layer.proj_out.shape[1], exact, paired)
    weights = derived(lambda: pack(*layer), layer.proj_out, *layer[:4], key=exact)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    run(x, weights, out)
    return out


def train(layer: GatedFeedForward, x: Tensor) -> Tensor:
    """The layer's result, differentiable by autograd."""
    return _Trained.apply(x, *layer)


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layer: Tensor) -> Tensor:
        ctx.path = path(x)  # autocast may be off in the backward pass
        ctx.save_for_backward(x, *layer)
        return gated_feed_forward(GatedFeedForward(*layer), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *layer = ctx.saved_tensors
        return gradients(GatedFeedForward(*layer), x, grad, ctx.path)


def gradients(layer: GatedFeedForward, x: Tensor, grad: Tensor, of: str) -> tuple[Tensor, ...]:
    """The gradients of x and of the layer's tensors, from that of its result; of: as in `gated_feed_forward`."""
    x, grad = x.contiguous(), grad.contiguous()
    pack, run, finish, add_up, numbers, of_shares = plan_backward(
        x.shape, x.dtype, x.device, layer.proj_out.shape[1], of == EXACT
    )
    weights, (scale, shift) = pack(*layer[2:]), (t.contiguous() for t in layer[:2])
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = torch.empty((run.blocks, numbers), dtype=torch.float32, device=x.device)
    shares = torch.empty((of_shares,), dtype=torch.float32, device=x.device)
    run(grad, x, scale, shift, weights, grad_x, rows, shares)
    if finish:
        finish(grad, x, scale, shares, grad_x, rows)
    sums = torch.empty((numbers,), dtype=x.dtype, device=x.device)
    add_up(rows, sums)
    return grad_x, *(s.view(t.shape) for s, t in zip(sums.split([t.numel() for t in layer]), layer, strict=True))


class Pack(NamedTuple):
    """The launch that packs weights, into so many words."""

    launch: Launch
    words: int

    def __call__(self, *tensors: Tensor) -> Tensor:
        weights = torch.empty((self.words,), dtype=torch.int32, device=tensors[0].device)
        self.launch(*(t.detach().contiguous() for t in tensors), weights)
        return weights


class Backward(NamedTuple):
    """The launches of a backward pass, of which `finish` is for tiles that blocks share.

    Attributes:
        numbers: of all gradients of weights.
        of_shares: numbers that blocks write for `finish`.
    """

    pack: Pack
    run: Launch
    finish: Launch | None
    add_up: Launch
    numbers: int
    of_shares: int


@functools.lru_cache(maxsize=1024)  # images of every size may come
def plan(
    shape: torch.Size,
    strides: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    hidden: int,
    exact: bool,
    paired: bool,
) -> tuple[Pack, Launch]:
    """The launches for tensors of these sizes."""
    batch, channels, height, width = shape
    terms, steps, outputs = terms_of(dtype), math.ceil(channels / terms_of(dtype)), math.ceil(channels / ROWS)
    elements = HALVES * ROWS * halo_tile.plane(dtype) + halo_tile.value_rows(dtype) * VALUE_ROW
    constants = halo_tile.constants(dtype, channels, exact) | {
        "HIDDEN": hidden,
        "CHUNKS": math.ceil(hidden / ROWS),
        "BLOCKS": 2 if channels <= TWO_BLOCKS else 1,
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance("gated_feed_forward.cu", tuple(constants.items())), device)
    of_chunk = _words(HALVES * steps + ROWS // terms * outputs, 1 + halo_tile.words_of_filter(dtype))
    words = math.ceil(hidden / ROWS) * of_chunk
    pack = Pack(Launch(module, "pack_feed_forward", math.ceil(words / THREADS), THREADS, 0, ()), words)
    blocks = halo_tile.tiles(batch, height, width)
    sizes = (*strides, height, width, paired)
    return pack, Launch(module, "gated_feed_forward", blocks, THREADS, 4 * elements, sizes)


@functools.lru_cache(maxsize=1024)
def plan_backward(shape: torch.Size, dtype: torch.dtype, device: torch.device, hidden: int, exact: bool) -> Backward:
    batch, channels, height, width = shape
    steps, outputs = math.ceil(channels / TERMS), math.ceil(channels / ROWS)
    elements = _elements_backward(channels)
    constants = halo_tile.constants(dtype, channels, exact, BORDER) | {
        "TERMS": TERMS,
        "HIDDEN": hidden,
        "CHUNKS": math.ceil(hidden / ROWS),
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance("gated_feed_forward_backward.cu", tuple(constants.items())), device)
    of_chunk = _words((HALVES + 1) * steps + HALVES * ROWS // TERMS * outputs, halo_tile.FILTER)
    words = math.ceil(hidden / ROWS) * of_chunk
    numbers = channels * (2 + (HALVES + 1) * hidden) + HALVES * hidden * TAPS
    tiles, chunks = halo_tile.tiles(batch, height, width), math.ceil(hidden / ROWS)
    out = share_out(tiles, chunks, cuda_modules.multiprocessors(device))
    units = out.whole + (tiles - out.whole) * out.shares
    lane_sums = 2 * whole(channels, ROWS) * (THREADS // 8 + 1)
    finish = Launch(
        module, "gated_feed_forward_finish", tiles - out.whole, THREADS, 4 * lane_sums,
        (height, width, out.whole, out.shares)
    )  # fmt: skip
    return Backward(
        Pack(Launch(module, "pack_for_backward", math.ceil(words / THREADS), THREADS, 0, ()), words),
        Launch(
            module, "gated_feed_forward_backward", out.blocks, THREADS, 4 * elements,
            (height, width, out.whole, units, out.shares, out.chunks, out.blocks)
        ),
        finish if finish.blocks else None,
        Launch(module, "add_rows", math.ceil(numbers / WARP), THREADS, 4 * THREADS, (out.blocks,)),
        numbers,
        (units - out.whole) * whole(channels, ROWS) * PIXELS,
    )  # fmt: skip


class SharedOut(NamedTuple):
    """How blocks share out tiles: the first `whole` ones among all, each of the others among `shares` of them.

    Attributes:
        chunks: of hidden channels that a share has, at most.
    """

    blocks: int
    whole: int
    shares: int
    chunks: int


def share_out(tiles: int, chunks: int, most: int) -> SharedOut:
    """The fastest way with at most `most` blocks at once; if several are, the one with the fewest blocks.

    Each block has a row of sums, so fewer are better.
    """

    def found(blocks: int) -> tuple[float, SharedOut]:
        rounds, left = divmod(tiles, blocks)
        of_share = math.ceil(chunks / max(1, blocks // max(1, left)))
        if left and of_share < chunks:
            time = rounds + of_share / chunks + SHARING
            if time < rounds + 1:
                return time, SharedOut(blocks, tiles - left, math.ceil(chunks / of_share), of_share)
        return math.ceil(tiles / blocks), SharedOut(blocks, tiles, 1, chunks)

    return min(map(found, range(1, min(most, tiles) + 1)))[1]


def _words(matrices: int, of_channel: int) -> int:
    """The words of the packed weights of a chunk: matrices of products, and so many words for each hidden channel."""
    return matrices * WARP * 4 + HALVES * ROWS * of_channel


def _elements_backward(channels: int) -> int:
    """Words of shared memory of a block of the backward pass."""
    of_border, of_own = plane_of_pixels(BORDER - 1), PIXELS + 4
    of_hidden = plane_of_pixels(BORDER) + of_border + of_own + 2 * TAPS
    return HALVES * ROWS * of_hidden + ROWS * of_own + whole(channels, ROWS) * (of_border + 4 + of_own)
