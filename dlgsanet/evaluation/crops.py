"""The crop of a picture that a page or a figure shows: where the methods differ most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlgsanet.metrics import luma


@dataclass(frozen=True)
class Crop:
    """A square of a picture: left, top and side in pixels of the original, multiples of the scale."""

    x: int
    y: int
    side: int

    def of(self, image: np.ndarray, shrunk: int = 1) -> np.ndarray:
        """This part of [H, W, C], or of the LR image, which is `shrunk` by the scale."""
        x, y, side = (value // shrunk for value in (self.x, self.y, self.side))
        return image[y : y + side, x : x + side]


def best_crop(outputs: Sequence[np.ndarray], original: np.ndarray, scale: int, side: int = 96) -> Crop:
    """The crop in which the mean squared errors (on Y) of the outputs differ most.

    Args:
        outputs: uint8 [H, W, 3] of each method, at least one. If only one: the crop with its largest error.
        original: uint8 [H, W, 3], H and W multiples of `scale`.
        side: wanted side; made a multiple of the scale that fits into the picture.
    """
    height, width = original.shape[:2]
    side = max(scale, min(side, height, width) // scale * scale)
    reference = luma(original)
    scored = np.zeros_like(reference)  # the border, which PSNR leaves out, must not decide
    scored[scale:-scale, scale:-scale] = 1
    errors = [_box_sums(scored * (luma(output) - reference) ** 2, side)[::scale, ::scale] for output in outputs]
    spread = np.max(errors, axis=0) - (np.min(errors, axis=0) if len(errors) > 1 else 0)
    row, column = np.unravel_index(int(np.argmax(spread)), spread.shape)
    return Crop(int(column) * scale, int(row) * scale, side)


def _box_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over every side x side window of [H, W], as [H - side + 1, W - side + 1]."""
    total = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
