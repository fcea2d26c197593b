"""The MATLAB-rule resize against the field's own LR images, its published figures and its definition."""

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data as photographs

from dlgsanet.data.resize import crop_to_multiple, downscale, imresize

needs_benchmark = pytest.mark.skipif("DLGSANET_SHARED" not in os.environ, reason="DLGSANET_SHARED is not set")


def benchmark(name: str) -> Path:
    return Path(os.environ["DLGSANET_SHARED"], "data", "benchmark", name)


@needs_benchmark
@pytest.mark.parametrize("name", ["Set5", "Set14", "Urban10"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_images_are_the_fields_bit_for_bit(name, scale):
    hr_files = sorted(benchmark(name).glob("HR/*.png"))
    assert hr_files
    for hr_file in hr_files:
        lr_file = benchmark(name) / f"LR_bicubic/X{scale}/{hr_file.stem}x{scale}.png"
        hr, lr = (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in (hr_file, lr_file))
        np.testing.assert_array_equal(downscale(hr, scale), lr, err_msg=str(lr_file))


@needs_benchmark
@pytest.mark.parametrize(("scale", "published"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_bicubic_row_of_set5(scale, published):
    """The published figures; MATLAB rounds Y to whole levels, which costs them 0.01 dB."""
    scores = []
    for hr_file in sorted(benchmark("Set5").glob("HR/*.png")):
        hr = crop_to_multiple(cv2.imread(str(hr_file)), scale)
        difference = luma(imresize(downscale(hr, scale), scale)) - luma(hr)
        scores.append(10 * np.log10(255**2 / np.mean(difference[scale:-scale, scale:-scale] ** 2)))
    assert np.mean(scores) == pytest.approx(published + 0.01, abs=0.005)


def luma(bgr: np.ndarray) -> np.ndarray:
    return bgr @ np.array([24.966, 128.553, 65.481]) / 255 + 16


@settings(max_examples=30, deadline=None)
@given(
    image=arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))),
    scale=st.sampled_from([1 / 2, 1 / 3, 1 / 4, 1, 2, 3, 4]),
)
def test_follows_the_definition_at_every_pixel(image, scale):
    by_definition = definition_along_first_axis(image, scale)
    by_definition = definition_along_first_axis(by_definition.swapaxes(0, 1), scale).swapaxes(0, 1)
    np.testing.assert_array_equal(imresize(image, scale), by_definition)


def definition_along_first_axis(image, scale):
    """MATLAB's rule, one output row and one tap at a time."""
    stretch = max(1, 1 / scale)
    rows = []
    for row in range(math.ceil(len(image) * scale)):
        centre = (row + 0.5) / scale - 0.5
        taps = range(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1)
        weights = [keys_cubic((centre - tap) / stretch) for tap in taps]
        total = 0.0
        for tap, weight in zip(taps, weights, strict=True):
            mirrored = tap % (2 * len(image))
            total = total + weight * image[min(mirrored, 2 * len(image) - 1 - mirrored)].astype(float)
        # The slack keeps exact halves, as the definition has them, from falling below by a rounding error.
        rows.append(np.clip(np.floor(total / sum(weights) + 0.5 + 1e-9), 0, 255).astype(np.uint8))
    return np.stack(rows)


def keys_cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def test_gray_and_colour_alike():
    photograph = photographs.astronaut()
    np.testing.assert_array_equal(imresize(photograph, 1 / 3)[..., 1], imresize(photograph[..., 1], 1 / 3))


def test_lr_of_an_odd_size_is_that_of_its_cropped_photograph():
    photograph = photographs.coffee()  # 400x600
    np.testing.assert_array_equal(downscale(photograph, 3), imresize(photograph[:399], 1 / 3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 60_000, 3), (60_000, 3)])
def test_extreme_shapes_keep_a_constant(shape):
    assert (imresize(np.full(shape, 200, np.uint8), 2) == 200).all()
    assert imresize(np.full(shape, 200, np.uint8), 2).shape[:2] == (2 * shape[0], 2 * shape[1])


@pytest.mark.parametrize(
    ("image", "scale", "error"),
    [
        (np.zeros((8, 8), np.float32), 2, TypeError),
        (np.zeros((8, 8), np.uint16), 2, TypeError),
        (np.zeros((0, 8), np.uint8), 2, ValueError),
        (np.zeros(8, np.uint8), 2, ValueError),
        (np.zeros((8, 8), np.uint8), 0, ValueError),
    ],
)
def test_what_it_cannot_resize_is_an_error(image, scale, error):
    with pytest.raises(error):
        imresize(image, scale)


def test_too_small_to_shrink_is_an_error():
    with pytest.raises(ValueError, match="5x1 pixels are too few"):
        downscale(np.zeros((1, 5, 3), np.uint8), 2)
