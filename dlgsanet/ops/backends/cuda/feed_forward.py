"""The gated feed-forward layer without gradients in one CUDA kernel. `kernels/gated_feed_forward.cu` has the design."""

import functools
import math

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends.cuda import halo_tile
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import ROWS, THREADS, VALUE_ROW, padded, terms_of, whole
from dlgsanet.ops.backends.cuda.modules import Instance, Launch
from dlgsanet.ops.backends.torch.frozen import KEPT, derived
from dlgsanet.ops.records import GatedFeedForward

TWO_BLOCKS = 48  # channels, with which two blocks fit into a multiprocessor
HALVES = 2

EXACT, ROUNDED = "gated feed-forward", "gated feed-forward with rounded factors"  # to TF32, or to 16 bits like x


def path(x: Tensor) -> str:
    """The kernel that is exact enough."""
    return EXACT if halo_tile.exact(x) else ROUNDED


def takes(layer: GatedFeedForward, x: Tensor) -> bool:
    """Whether the kernel is made for these dtypes and sizes."""
    return halo_tile.serves(x, *layer)


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
    matrices = halo_tile.factors(torch.cat([first, second], 1), dtype, exact)
    if dtype.itemsize == 2:  # the kernel computes twice the gelu
        depthwise = torch.cat([depthwise[:hidden], depthwise[hidden:] / 2])
    return halo_tile.pack(matrices, in_chunks(proj_in @ norm_bias), in_chunks(halo_tile.taps(depthwise, dtype)))


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
    elements = HALVES * ROWS * halo_tile.plane(dtype) + halo_tile.value_rows(dtype) * VALUE_ROW
    constants = halo_tile.constants(dtype, channels, exact) | {
        "CHUNKS": math.ceil(hidden / ROWS),
        "BLOCKS": 2 if channels <= TWO_BLOCKS else 1,
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance("gated_feed_forward.cu", tuple(constants.items())), device)
    blocks = halo_tile.tiles(batch, height, width)
    return Launch(module, "gated_feed_forward", blocks, THREADS, 4 * elements, (*strides, height, width, paired))
