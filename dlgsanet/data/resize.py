"""Bicubic resizing of 8-bit images, bit-identical to MATLAB's `imresize(image, scale, 'bicubic')`.

Every published super-resolution figure stands on LR images made by this rule: the cubic kernel of Keys
(IEEE TASSP 29(6), 1981; a = -1/2), widened by 1/scale when shrinking (antialiasing), weights normalised at
each pixel, borders mirrored with the edge pixel repeated, and one pass along the height, rounded to uint8,
then one along the width, rounded again. Without the rounding in between, a tenth of the pixels are off by a
level or two.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import sparse

__all__ = ["crop_to_multiple", "downscale", "imresize"]


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize by `scale` (below 1 shrinks) by MATLAB's rule.

    Args:
        image: uint8 `[H, W]` or `[H, W, C]`, values 0 to 255, any channel order.
        scale: positive factor of both axes, for example `1 / 3` or `4`.

    Returns:
        uint8 `[ceil(H * scale), ceil(W * scale)]`, with the channels of the image.

    Raises:
        TypeError: the image is not uint8.
        ValueError: the image is empty or has another number of axes, or the scale is not positive.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"imresize takes uint8 images, not {image.dtype}")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"imresize takes an image [H, W] or [H, W, C] with pixels in it, not {image.shape}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    return _transposed(_resize_rows(_transposed(_resize_rows(image, float(scale))), float(scale)))


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """The LR image of the benchmarks: `image` cropped to a multiple of `scale`, then shrunk by it.

    Args:
        image: uint8 `[H, W]` or `[H, W, C]`, at least `scale` pixels high and wide.
        scale: integer factor, 2 or more.

    Returns:
        uint8 `[H // scale, W // scale]`, with the channels of the image.

    Raises:
        ValueError: the image has fewer than `scale` rows or columns.
    """
    return imresize(crop_to_multiple(image, scale), 1 / scale)


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """`image` `[H, W, ...]` without the last rows and columns beyond a multiple of `scale`.

    Raises:
        ValueError: the image has fewer than `scale` rows or columns.
    """
    height, width = (length - length % scale for length in image.shape[:2])
    if height == 0 or width == 0:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too few to shrink by {scale}")
    return image[:height, :width]


def _resize_rows(image: np.ndarray, scale: float) -> np.ndarray:
    """uint8 `[N, ...]` to uint8 `[ceil(N * scale), ...]`: one pass, rounded half up."""
    weights, unit = _weights(len(image), scale)
    rows = weights @ image.reshape(len(image), -1).astype(weights.dtype)
    rows *= unit
    rows.clip(0, 255, out=rows)
    rows += 0.5
    return rows.astype(np.uint8).reshape(-1, *image.shape[1:])


def _transposed(image: np.ndarray) -> np.ndarray:
    """`[H, W]` to `[W, H]`, or `[H, W, C]` to `[W, H, C]`, contiguous; NumPy is quick at it a channel at a time."""
    if image.ndim == 2:
        return np.ascontiguousarray(image.T)
    swapped = np.empty((image.shape[1], image.shape[0], image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        swapped[..., channel] = image[..., channel].T
    return swapped


@lru_cache(maxsize=64)
def _weights(length: int, scale: float) -> tuple[sparse.csr_matrix, float]:
    """One pass as a sparse matrix `[ceil(length * scale), length]` and the unit that its weights are counted in.

    Exactness decides: at x2 about one value in 80 lies on a half, and must be found there exactly to go up. Weights for
    a whole factor s are multiples of 1 / (16 s^4): counted in these, all sums of products with pixels are whole numbers
    below 2^24, exact in float32. Other scales are computed in float64, as MATLAB does.
    """
    shrink = min(scale, 1.0)
    out_length = math.ceil(length * scale)
    # Positions are counted from 1, as in MATLAB, so that they carry the same rounding errors.
    centre = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - 2 / shrink)
    taps = first[:, None] + np.arange(math.ceil(4 / shrink) + 2)
    weights = _cubic(shrink * (centre[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)
    factor, unit = max(scale, 1 / scale), 1.0
    if factor in (1, 2, 3, 4):
        unit = 1 / (16 * factor**4)
        weights = np.rint(weights / unit).astype(np.float32)
    mirror = np.r_[0:length, length - 1 : -1 : -1]
    columns = mirror[(taps.astype(np.int64) - 1) % (2 * length)]
    row_ends = np.arange(out_length + 1) * taps.shape[1]
    matrix = sparse.csr_matrix((weights.ravel(), columns.ravel(), row_ends), shape=(out_length, length))
    matrix.eliminate_zeros()
    return matrix, unit


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))
