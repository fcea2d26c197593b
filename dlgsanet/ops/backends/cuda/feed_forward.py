"""The gated feed-forward layer without gradients in one CUDA kernel. `kernels/gated_feed_forward.cu` has the design."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops import autocast, tf32
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.modules import SCALARS, Instance, Launch
from dlgsanet.ops.backends.torch.frozen import KEPT, derived
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import GatedFeedForward

TILE_WIDTH, TILE_HEIGHT = 16, 8
THREADS, WARP = 256, 32
MOST_CHANNELS = 96  # whose factors and sums fit into the registers of a block
TWO_BLOCKS = 48  # channels, with which two blocks fit into a multiprocessor
ROWS, COLUMNS, TERMS = 16, 8, 8  # of a product on tensor cores
HALVES, FILTER = 2, 12  # numbers of a filter: nine taps and padding
BANKS = 8  # numbers between the rows of arrays in shared memory

EXACT, TF32 = "gated feed-forward", "gated feed-forward in TF32"


def path(x: Tensor) -> str:
    """The kernel that is exact enough: under autocast products may have fewer bits than TF32."""
    exact = x.dtype == torch.float32 and not tf32.allowed_in_matrix_products() and not autocast.is_on(x.device.type)
    return EXACT if exact else TF32


def takes(layer: GatedFeedForward, x: Tensor) -> bool:
    """Whether the kernel is made for these dtypes and sizes."""
    device = x.device.type
    dtypes = {x.dtype, *(t.dtype for t in layer)}
    result = x.dtype == torch.float32 or not autocast.is_on(device) or x.dtype == torch.get_autocast_dtype(device)
    return len(dtypes) == 1 and result and x.shape[1] <= MOST_CHANNELS and x.dtype != torch.float64


def timed(layer: GatedFeedForward, x: Tensor) -> tuple[object, ...]:
    """What the time depends on, apart from the pixels. Weights that are not frozen are packed in every call."""
    device = x.device.type
    lower = torch.get_autocast_dtype(device) if autocast.is_on(device) else x.dtype
    return path(x), x.dtype, lower, *layer.proj_out.shape[:2], hasattr(layer.proj_out, KEPT)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernel, `EXACT` or `TF32`."""
    exact = (of or path(x)) == EXACT
    weights = derived(lambda: pack(layer, exact), layer.proj_out, *layer[:4], key=exact)
    if not x[0, 0].is_contiguous():
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = x.stride()[:2]
    paired = not any(n % 2 for n in (*strides, x.shape[-1], x.data_ptr() // x.element_size()))
    plan(x.shape, strides, x.dtype, x.device, layer.proj_out.shape[1], exact, paired)(x, weights, out)
    return out


def pack(layer: GatedFeedForward, exact: bool) -> Tensor:
    """The weights as the kernel reads them, in chunks of hidden channels; exact: factors are not rounded to TF32."""
    norm_weight, norm_bias, proj_in, depthwise, proj_out = (t.detach().float() for t in layer)
    channels, hidden = proj_out.shape[:2]
    chunks = math.ceil(hidden / ROWS)

    def padded(t: Tensor, *shape: int) -> Tensor:
        """t [shape of t] at the beginning of zeros of a larger shape."""
        return F.pad(t, [n for have, want in zip(t.shape[::-1], shape[::-1], strict=True) for n in (0, want - have)])

    proj_in = proj_in.flatten(1)
    bias = padded((proj_in @ norm_bias).view(HALVES, -1), HALVES, chunks * ROWS)
    filters = padded(depthwise.reshape(HALVES, hidden, -1), HALVES, chunks * ROWS, FILTER)
    first = padded(
        (proj_in * norm_weight).view(HALVES, hidden, channels), HALVES, chunks * ROWS, _whole(channels, TERMS)
    )
    # [chunks, step, half, row, column] and [chunks, step, rows of outputs, row, column]
    first = first.view(HALVES, chunks, ROWS, -1, TERMS).permute(1, 3, 0, 2, 4)
    second = padded(proj_out.flatten(1), _whole(channels, ROWS), chunks * ROWS)
    second = second.view(-1, ROWS, chunks, ROWS // TERMS, TERMS).permute(2, 3, 0, 1, 4)
    factors = torch.cat([first.flatten(1, 2), second.flatten(1, 2)], 1)
    # Lane 4 g + t has the rows g and g + 8 of the columns t and t + 4.
    factors = factors.view(*factors.shape[:2], 2, ROWS // 2, 2, TERMS // 2).permute(0, 1, 3, 5, 4, 2).flatten(1)
    if not exact:
        factors = _to_tf32(factors)
    of_chunks = (t.unflatten(1, (chunks, ROWS)).transpose(0, 1).flatten(1) for t in (bias, filters))
    return torch.cat([factors, *of_chunks], 1)


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
    pixels = TILE_WIDTH * TILE_HEIGHT
    halo = _whole((TILE_WIDTH + 2) * (TILE_HEIGHT + 2), THREADS // WARP * COLUMNS)
    elements = ROWS * (HALVES * (halo + BANKS) + pixels + BANKS)
    constants: dict[str, str | int] = {
        "SCALAR": SCALARS[dtype],
        "CHANNELS": channels,
        "CHUNKS": math.ceil(hidden / ROWS),
        "EXACT": int(exact),
        "TILE_WIDTH": TILE_WIDTH,
        "TILE_HEIGHT": TILE_HEIGHT,
        "THREADS": THREADS,
        "BLOCKS": 2 if channels <= TWO_BLOCKS else 1,
        "EPS": f"{LAYER_NORM_EPS}f",
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance("gated_feed_forward.cu", tuple(constants.items())), device)
    blocks = batch * math.ceil(height / TILE_HEIGHT) * math.ceil(width / TILE_WIDTH)
    return Launch(module, "gated_feed_forward", blocks, THREADS, 4 * elements, (*strides, height, width, paired))


def _whole(count: int, step: int) -> int:
    """The smallest multiple of a step that is not less than the count."""
    return math.ceil(count / step) * step
