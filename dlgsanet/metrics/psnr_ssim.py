"""PSNR and SSIM as in the tables of papers: the values of BasicSR, for uint8 images in RGB instead of BGR.

The Y channel is MATLAB's `rgb2ycbcr` (ITU-R BT.601, 16 to 235), not rounded. SSIM is the original of Wang et al.
(IEEE TIP 13(4), 2004): 11x11 Gaussian window of sigma 1.5, only at positions where it is inside the image.
"""

import math

import numpy as np
from scipy.ndimage import correlate1d

_Y_WEIGHTS = np.array([65.481, 128.553, 24.966])
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_WINDOW = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()


def luma(image: np.ndarray) -> np.ndarray:
    """The Y channel float32 [H, W], 16 to 235, of an image uint8 [H, W, 3] in RGB."""
    # Rounded to float32 where BasicSR rounds. Otherwise SSIM differs in flat regions.
    y = (image.astype(np.float32) / 255) @ _Y_WEIGHTS + 16
    return (y / 255).astype(np.float32) * np.float32(255)


def psnr(image: np.ndarray, reference: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        image, reference: uint8 [H, W, 3] in RGB, or [H, W, 1].
        crop_border: pixels left out at each edge; papers leave out as many as the scale.
        y_channel: compare the luma of RGB images; otherwise all channels at once.

    Raises:
        ValueError: the sizes differ, or nothing is left after cropping.
    """
    a, b = _comparable(image, reference, crop_border, y_channel, least=1)
    error = np.mean((a - b) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(image: np.ndarray, reference: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Structural similarity, at most 1; the mean over three channels. Arguments as for `psnr`.

    Raises:
        ValueError: the sizes differ, or less than 11x11 pixels are left after cropping.
    """
    a, b = _comparable(image, reference, crop_border, y_channel, least=len(_WINDOW))
    moments = np.stack([a, b, a * a, b * b, a * b])  # [5, H, W, channels]
    r = len(_WINDOW) // 2
    moments = correlate1d(moments, _WINDOW, axis=1)[:, r:-r]
    mean_a, mean_b, aa, bb, ab = correlate1d(moments, _WINDOW, axis=2)[:, :, r:-r]
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a**2 + bb - mean_b**2
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))))


def _comparable(
    image: np.ndarray, reference: np.ndarray, crop_border: int, y_channel: bool, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [H, W, channels], cropped."""
    if image.shape != reference.shape:
        raise ValueError(f"the images differ in size: {image.shape} and {reference.shape}")
    height, width = (length - 2 * crop_border for length in image.shape[:2])
    if min(height, width) < least:
        raise ValueError(f"{width}x{height} pixels are left after cropping {crop_border}; {least}x{least} are needed")
    rows, columns = slice(crop_border, crop_border + height), slice(crop_border, crop_border + width)
    cropped = (array[rows, columns] for array in (image, reference))
    a, b = (luma(c)[..., None] if y_channel and c.shape[2] == 3 else c for c in cropped)
    return a.astype(np.float64), b.astype(np.float64)
