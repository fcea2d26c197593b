"""Sums and averages over the cells that an image falls into where the borders of overlapping windows (TLC) cross."""

import torch
from torch import Tensor

from dlgsanet.ops.windows import pieces, window_starts


class Cells:
    """The cells of an image; see `dlgsanet.ops.windows`.

    Args:
        height, width: of the image, pixels.
        window: side of the windows, pixels, or None: one window, the image.
        highest: most rows of a cell.

    Attributes:
        windows: how many windows there are, (down, across).
        bands: each row of cells as (its rows of pixels, the rows of windows that hold it).
        columns: the columns of pixels of each cell of a band.
    """

    def __init__(self, height: int, width: int, window: int | None, highest: int):
        self.bands = [(piece.pixels, piece.windows) for piece in pieces(height, window, longest=highest)]
        across = pieces(width, window)
        self.columns = [piece.pixels for piece in across]
        self.windows = len(window_starts(height, window or height)), len(window_starts(width, window or width))
        # [windows across, cells across], 1 where the window holds the cell
        self._cover = torch.zeros(self.windows[1], len(across), dtype=torch.float64)
        for i, piece in enumerate(across):
            self._cover[piece.windows, i] = 1

    def sum_across(self, values: Tensor) -> Tensor:
        """Sums over the pixels of a band within each window across, from those of its cells [cells across, ...]."""
        return torch.tensordot(self._cover.to(values), values, 1)

    def average_across(self, values: Tensor) -> Tensor:
        """For each cell of a band the mean over the windows across that hold it, of values [windows across, ...]."""
        return torch.tensordot((self._cover / self._cover.sum(0)).t().to(values), values, 1)
