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
    tall = _resize_rows(image, float(scale))
    return np.ascontiguousarray(_resize_rows(tall.swapaxes(0, 1), float(scale)).swapaxes(0, 1))


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
    weights = _weights(len(image), scale)
    rows = weights @ image.reshape(len(image), -1).astype(np.float64)
    rows = np.floor(rows + 0.5, out=rows).clip(0, 255, out=rows)
    return rows.astype(np.uint8).reshape(-1, *image.shape[1:])


@lru_cache(maxsize=64)
def _weights(length: int, scale: float) -> sparse.csr_matrix:
    """The sparse float64 matrix `[ceil(length * scale), length]` of one pass.

    Float64 is needed: at x2 about one value in 80 lies on a half, and must be found there exactly to go up.
    """
    shrink = min(scale, 1.0)
    out_length = math.ceil(length * scale)
    # Positions are counted from 1, as in MATLAB, so that they carry the same rounding errors.
    centre = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - 2 / shrink)
    taps = first[:, None] + np.arange(math.ceil(4 / shrink) + 2)
    weights = _cubic(shrink * (centre[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.r_[0:length, length - 1 : -1 : -1]
    columns = mirror[(taps.astype(np.int64) - 1) % (2 * length)]
    row_ends = np.arange(out_length + 1) * taps.shape[1]
    return sparse.csr_matrix((weights.ravel(), columns.ravel(), row_ends), shape=(out_length, length))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))
