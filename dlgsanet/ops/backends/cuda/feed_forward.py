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
ROWS, COLUMNS = 16, 8  # of a product on tensor cores
HALVES, FILTER = 2, 12  # numbers of a filter: nine taps and padding
PAIRS = 5  # of a filter's row in the kernel for 16 bits
BANKS = 8  # numbers between the rows of arrays in shared memory

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


def timed(layer: GatedFeedForward, x: Tensor) -> tuple[object, ...]:
    """What the time depends on, apart from the pixels. Weights that are not frozen are packed in every call."""
    return path(x), x.dtype, autocast.dtype_of(x), *layer.proj_out.shape[:2], hasattr(layer.proj_out, KEPT)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor, of: str | None = None) -> Tensor:
    """The layer's result for x [B, C, H, W]; of: the kernel, `EXACT` or `ROUNDED`."""
    exact = (of or path(x)) == EXACT
    weights = derived(lambda: pack(layer, exact), layer.proj_out, *layer[:4], key=exact)
    if not x[0, 0].is_contiguous() or x.stride(1) >= 2**32:
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = x.stride()[:2]
    paired = not any(n % 2 for n in (*strides, x.shape[-1], x.data_ptr() // x.element_size()))
    plan(x.shape, strides, x.dtype, x.device, layer.proj_out.shape[1], exact, paired)(x, weights, out)
    return out


def pack(layer: GatedFeedForward, exact: bool) -> Tensor:
    """The weights as a kernel reads them, in words of 32 bits and chunks of hidden channels; exact: not in TF32."""
    dtype, terms = layer.proj_out.dtype, terms_of(layer.proj_out.dtype)
    norm_weight, norm_bias, proj_in, depthwise, proj_out = (t.detach().float() for t in layer)
    channels, hidden = proj_out.shape[:2]
    chunks = math.ceil(hidden / ROWS)

    def padded(t: Tensor, *shape: int) -> Tensor:
        """t [shape of t] at the beginning of zeros of a larger shape."""
        return F.pad(t, [n for have, want in zip(t.shape[::-1], shape[::-1], strict=True) for n in (0, want - have)])

    proj_in = proj_in.flatten(1)
    bias = padded((proj_in @ norm_bias).view(HALVES, -1), HALVES, chunks * ROWS)
    depthwise = depthwise.view(HALVES, hidden, 9)
    if dtype.itemsize == 2:
        filters = padded(_in_pairs(depthwise, dtype), HALVES, chunks * ROWS, PAIRS * 4)
    else:
        filters = padded(depthwise, HALVES, chunks * ROWS, FILTER)
    first = padded(
        (proj_in * norm_weight).view(HALVES, hidden, channels), HALVES, chunks * ROWS, _whole(channels, terms)
    )
    # [chunks, step, half, row, column] and [chunks, step, rows of outputs, row, column]
    first = first.view(HALVES, chunks, ROWS, -1, terms).permute(1, 3, 0, 2, 4)
    second = padded(proj_out.flatten(1), _whole(channels, ROWS), chunks * ROWS)
    second = second.view(-1, ROWS, chunks, ROWS // terms, terms).permute(2, 3, 0, 1, 4)
    factors = torch.cat([first.flatten(1, 2), second.flatten(1, 2)], 1)
    # Lane 4 g + t has the rows g and g + 8, of the columns of word t of either half.
    factors = factors.view(*factors.shape[:2], 2, ROWS // 2, 2, 4, terms // 8)
    factors = factors.permute(0, 1, 3, 5, 4, 2, 6).flatten(1)
    if dtype.itemsize == 2:
        factors = _words(factors.to(dtype))
    elif not exact:
        factors = _to_tf32(factors)
    of_chunks = (t.unflatten(1, (chunks, ROWS)).transpose(0, 1).flatten(1) for t in (bias, filters))
    return torch.cat([t.view(torch.int32) for t in (factors, *of_chunks)], 1)


def _in_pairs(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """[HALVES, n, 9] -> [HALVES, n, PAIRS * 4] words: neighbours of each row of a filter, as the kernel describes."""
    rows = torch.stack([filters[0], filters[1] / 2]).unflatten(2, (3, 3))
    pairs = F.pad(rows, (1, 2)).unfold(3, 2, 1)  # [HALVES, n, row, pair, 2]
    return _words(F.pad(pairs.transpose(2, 3), (0, 0, 0, 1)).to(dtype).contiguous()).flatten(2)


def _words(pairs: Tensor) -> Tensor:
    """[..., 2 * n] of 16 bits -> [..., n] of 32 bits, which are no numbers."""
    return pairs.view(torch.float32)


def terms_of(dtype: torch.dtype) -> int:
    """Of a product on tensor cores: twice as many of 16 bits."""
    return 32 // dtype.itemsize


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
    if dtype.itemsize == 2:
        source, plane = "gated_feed_forward_16bit.cu", (TILE_HEIGHT + 3) * (TILE_WIDTH + COLUMNS) // 2
        elements = HALVES * ROWS * plane + ROWS // 2 * (pixels + BANKS)
    else:
        source, halo = "gated_feed_forward.cu", _whole((TILE_WIDTH + 2) * (TILE_HEIGHT + 2), THREADS // WARP * COLUMNS)
        elements = ROWS * (HALVES * (halo + BANKS) + pixels + BANKS)
    constants: dict[str, str | int] = {
        "SCALAR": SCALARS[dtype],
        "CHANNELS": channels,
        "CHUNKS": math.ceil(hidden / ROWS),
        "TERMS": terms_of(dtype),
        "EXACT": int(exact),
        "TILE_WIDTH": TILE_WIDTH,
        "TILE_HEIGHT": TILE_HEIGHT,
        "THREADS": THREADS,
        "BLOCKS": 2 if channels <= TWO_BLOCKS else 1,
        "EPS": f"{LAYER_NORM_EPS}f",
        "SHARED_ELEMENTS": elements,
    }
    module = cuda_modules.load(Instance(source, tuple(constants.items())), device)
    blocks = batch * math.ceil(height / TILE_HEIGHT) * math.ceil(width / TILE_WIDTH)
    return Launch(module, "gated_feed_forward", blocks, THREADS, 4 * elements, (*strides, height, width, paired))


def _whole(count: int, step: int) -> int:
    """The smallest multiple of a step that is not less than the count."""
    return math.ceil(count / step) * step
