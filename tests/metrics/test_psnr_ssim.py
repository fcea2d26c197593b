"""PSNR and SSIM, compared with BasicSR's functions."""

import math

import numpy as np
import pytest
from skimage import data

from dlgsanet.metrics import psnr, ssim


def pairs(count):
    """(image, noisy image, crop) of random values, photographs and flat regions. Sides are 20 to 89, crops 0 to 4."""
    random = np.random.default_rng(0)
    photographs = [data.astronaut(), data.chelsea(), data.coffee()]
    for number in range(count):
        crop = int(random.integers(0, 5))
        height, width = random.integers(20, 90, 2)
        if number % 3 == 0:
            image = random.integers(0, 256, (height, width, 3), np.uint8)
        else:
            image = photographs[number % 2][100 : 100 + height, 80 : 80 + width].copy()
        if number % 5 == 0:
            image[: height // 2] = 200  # flat: SSIM divides two small variances
        noise = random.normal(0, random.uniform(0.3, 30), image.shape)
        yield image, np.clip(image + noise, 0, 255).round().astype(np.uint8), crop


def test_equal_basicsr_on_100_pairs():
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.metrics import calculate_psnr, calculate_ssim

    for image, reference, crop in pairs(100):
        for y_channel in (True, False):
            theirs = {"crop_border": crop, "test_y_channel": y_channel}
            bgr = image[..., ::-1], reference[..., ::-1]
            assert psnr(image, reference, crop, y_channel) == pytest.approx(calculate_psnr(*bgr, **theirs), abs=1e-6)
            assert ssim(image, reference, crop, y_channel) == pytest.approx(calculate_ssim(*bgr, **theirs), abs=1e-6)


def test_equal_images_are_perfect():
    image = data.astronaut()[:40, :50]
    assert psnr(image, image, 4) == math.inf
    assert ssim(image, image, 4) == pytest.approx(1)


def test_images_that_cannot_be_compared():
    image = data.astronaut()[:40, :50]
    with pytest.raises(ValueError, match="39, 50"):
        psnr(image, image[:-1], 2)
    with pytest.raises(ValueError, match="32x7"):
        ssim(image[:25], image[:25], 9)
