"""What the kernels of layers share: their tiles, and how they read x and weights. See `kernels/halo_tile.h`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dlgsanet.ops import autocast, tf32
from dlgsanet.ops.backends.cuda.modules import SCALARS
from dlgsanet.ops.constants import LAYER_NORM_EPS

TILE_WIDTH, TILE_HEIGHT = 16, 8
PIXELS = TILE_WIDTH * TILE_HEIGHT
THREADS, WARP = 256, 32
MOST_CHANNELS = 96  # whose factors and sums fit into the registers of a block
ROWS, COLUMNS = 16, 8  # of a product on tensor cores
KINDS = 7  # of factors that lanes have of a filter in the kernels for 16 bits
FILTER = 12  # numbers of a filter in the kernels for float32: nine taps and padding
BANKS = 8  # numbers between the rows of arrays in shared memory
VALUE_ROW = PIXELS + BANKS  # words: kValueStride of `kernels/projection.h`


def exact(x: Tensor) -> bool:
    """Whether products have to be as exact as in float32: under autocast they may have fewer bits than TF32."""
    return x.dtype == torch.float32 and not tf32.allowed_in_matrix_products() and not autocast.is_on(x.device.type)


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether there are kernels for these dtypes and for the channels of x."""
    dtypes = {x.dtype, *(t.dtype for t in weights)}
    result = x.dtype in (torch.float32, autocast.dtype_of(x))
    return len(dtypes) == 1 and result and x.shape[1] <= MOST_CHANNELS and x.dtype != torch.float64


def constants(dtype: torch.dtype, channels: int, exact: bool, border: int = 1) -> dict[str, str | int]:
    """The constants of `kernels/halo_tile.h` that all layers have. exact: products are as exact as in float32."""
    return {
        "SCALAR": SCALARS[dtype],
        "CHANNELS": channels,
        "TERMS": terms_of(dtype),
        "EXACT": int(exact),
        "TILE_WIDTH": TILE_WIDTH,
        "TILE_HEIGHT": TILE_HEIGHT,
        "BORDER": border,
        "THREADS": THREADS,
        "EPS": f"{LAYER_NORM_EPS}f",
    }


def tiles(batch: int, height: int, width: int) -> int:
    return batch * math.ceil(height / TILE_HEIGHT) * math.ceil(width / TILE_WIDTH)


def terms_of(dtype: torch.dtype) -> int:
    """The number of terms of a product on tensor cores: with 16 bits twice as many."""
    return 32 // dtype.itemsize


def plane(dtype: torch.dtype) -> int:
    """The words of a hidden channel in shared memory: kPlane of `kernels/hidden_*.h`."""
    if dtype.itemsize == 2:
        return (TILE_HEIGHT + 3) * (TILE_WIDTH + COLUMNS) // 2
    return plane_of_pixels(1)


def plane_of_pixels(border: int) -> int:
    """The words of a channel in shared memory, of a tile with a border of so many pixels, in float32."""
    return whole((TILE_WIDTH + 2 * border) * (TILE_HEIGHT + 2 * border), THREADS // WARP * COLUMNS) + BANKS


def value_rows(dtype: torch.dtype) -> int:
    """Rows of `VALUE_ROW` words for 16 channels."""
    return ROWS * dtype.itemsize // 4


def readable(x: Tensor) -> tuple[Tensor, tuple[int, int], bool]:
    """x [B, C, H, W] or a copy that kernels can read, its strides, and whether they can move two pixels at once."""
    if not x[0, 0].is_contiguous() or x.stride(1) >= 2**32:
        x = x.contiguous()
    strides = x.stride(0), x.stride(1)
    paired = not any(n % 2 for n in (*strides, x.shape[-1], x.data_ptr() // x.element_size()))
    return x, strides, paired


def whole(count: int, step: int) -> int:
    """The smallest multiple of a step that is not less than the count."""
    return math.ceil(count / step) * step


def padded(t: Tensor, *shape: int) -> Tensor:
    """t [shape of t] at the beginning of zeros of a larger shape."""
    return F.pad(t, [n for have, want in zip(t.shape[::-1], shape[::-1], strict=True) for n in (0, want - have)])


def projection(weight: Tensor, terms: int) -> Tensor:
    """Matrices of a projection for products: [chunks, parts, ROWS, channels] -> [chunks, matrices, ROWS, terms]."""
    weight = padded(weight, *weight.shape[:3], whole(weight.shape[3], terms))
    return weight.unflatten(3, (-1, terms)).permute(0, 3, 1, 2, 4).flatten(1, 2)


def factors(matrices: Tensor, dtype: torch.dtype, exact: bool) -> Tensor:
    """Matrices in float32 as factors of products: in TF32 unless exact, or in 16 bits."""
    if dtype.itemsize == 2:
        return matrices.to(dtype)
    return matrices if exact else ((matrices.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def taps(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """Filters [channels, 9] in float32 as kernels read them: [channels, numbers]."""
    return kinds(filters, dtype) if dtype.itemsize == 2 else padded(filters, len(filters), FILTER)


def words_of_filter(dtype: torch.dtype) -> int:
    return KINDS * 8 if dtype.itemsize == 2 else FILTER


def pack(matrices: Tensor, bias: Tensor, filters: Tensor) -> Tensor:
    """The weights of chunks as kernels read them, in words of 32 bits.

    Args:
        matrices: [chunks, matrices, ROWS, terms], in the dtype of the factors of products.
        bias: [chunks, parts, ROWS] of the projection, in float32.
        filters: [chunks, parts, ROWS, numbers], of `taps`.
    """
    return torch.cat([words(matrices), *(t.flatten(1).view(torch.int32) for t in (bias, filters))], 1)


def words(matrices: Tensor) -> Tensor:
    """Factors [chunks, matrices, ROWS, terms] as lanes read them: [chunks, words]."""
    chunks, count, _, terms = matrices.shape
    # Lane 4 g + t has the rows g and g + 8, of the columns of word t of either half.
    lanes = matrices.view(chunks, count, 2, ROWS // 2, 2, 4, terms // 8).permute(0, 1, 3, 5, 4, 2, 6)
    return lanes.reshape(chunks, -1).view(torch.int32)


def kinds(filters: Tensor, dtype: torch.dtype) -> Tensor:
    """Filters [..., 9] as `kernels/hidden_16bit.h` describes them: words [..., KINDS * 8]."""
    pairs = F.pad(filters.unflatten(-1, (3, 3)), (1, 1)).unfold(-1, 2, 1).transpose(-3, -2)  # [..., pair, row, 2]
    above, below = F.pad(pairs, (0, 2, 0, 1)), F.pad(pairs[..., 2:, :, :], (2, 0, 0, 1))
    of_kinds = F.pad(torch.cat([above, below], -3), (0, 0, 0, 0, 0, 1))
    return of_kinds.to(dtype).contiguous().view(torch.float32).flatten(-3)
