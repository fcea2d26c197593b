"""The cells that an image falls into where the borders of overlapping windows (TLC) cross.

All pixels of a cell lie in the same windows. Hence what is a sum over the pixels of a window is a sum over its cells,
and the average of what the windows make of a pixel is one linear map for the whole cell: the pixels are read once,
however the windows overlap, and no window is copied.
"""

from itertools import pairwise

import torch
from torch import Tensor

from dlgsanet.ops.windows import window_starts


class Cells:
    """The cells of an image.

    Args:
        height, width: of the image, pixels.
        window: side of the windows, pixels, or None: one window, the image.
        highest: cells may be no higher than so many pixels.

    Attributes:
        windows: how many windows there are, (down, across).
        bands: each row of cells as (its rows of pixels, the rows of windows that hold it).
        columns: the columns of pixels of each cell of a band.
    """

    def __init__(self, height: int, width: int, window: int | None, highest: int):
        starts = window_starts(height, window or height)
        window_height = min(height, window or height)
        self.bands = [(rows, _holders(rows, starts, window_height)) for rows in _cut(starts, window_height, highest)]
        starts_across = window_starts(width, window or width)
        window_width = min(width, window or width)
        self.columns = _cut(starts_across, window_width, width)
        self.windows = len(starts), len(starts_across)
        # [windows across, cells across], 1 where the window holds the cell
        self._cover = torch.zeros(len(starts_across), len(self.columns), dtype=torch.float64)
        for i, columns in enumerate(self.columns):
            self._cover[_holders(columns, starts_across, window_width), i] = 1

    def sum_across(self, values: Tensor) -> Tensor:
        """Sums over the pixels of a band within each window across, from those of its cells [cells across, ...]."""
        return torch.tensordot(self._cover.to(values), values, 1)

    def average_across(self, values: Tensor) -> Tensor:
        """For each cell of a band the mean over the windows across that hold it, of values [windows across, ...]."""
        return torch.tensordot((self._cover / self._cover.sum(0)).t().to(values), values, 1)


def _cut(starts: list[int], window: int, longest: int) -> list[slice]:
    """The pieces of an axis between places where windows start or end, none of more than `longest` pixels."""
    borders = sorted({*starts, *(start + window for start in starts)})
    pieces = []
    for a, b in pairwise(borders):
        step = -(-(b - a) // -(-(b - a) // longest))  # even parts
        pieces += [slice(c, min(c + step, b)) for c in range(a, b, step)]
    return pieces


def _holders(piece: slice, starts: list[int], window: int) -> slice:
    """Which windows hold a piece: a run of them, as they are in order and of one length."""
    held = [i for i, start in enumerate(starts) if start <= piece.start < start + window]
    return slice(held[0], held[-1] + 1)
