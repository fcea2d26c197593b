"""Sums and averages over cells: the parts of an image between the borders of overlapping windows (TLC)."""

import torch
from torch import Tensor

from dlgsanet.ops.windows import pieces, window_starts


class Cells:
    """The cells of an image; see `dlgsanet.ops.windows`.

    Args:
        height, width: of the image in pixels.
        window: side of the windows in pixels; None: one window, the whole image.
        highest: the most rows of a cell.

    Attributes:
        windows: number of windows (down, across).
        bands: for each row of cells, its rows of pixels and the rows of windows that contain it.
        columns: the columns of pixels of each cell in a band.
    """

    def __init__(self, height: int, width: int, window: int | None, highest: int):
        self.bands = [(piece.pixels, piece.windows) for piece in pieces(height, window, longest=highest)]
        across = pieces(width, window)
        self.columns = [piece.pixels for piece in across]
        self.windows = len(window_starts(height, window or height)), len(window_starts(width, window or width))
        # [windows across, cells across], 1 where the window contains the cell
        self._cover = torch.zeros(self.windows[1], len(across), dtype=torch.float64, device="cpu")
        for i, piece in enumerate(across):
            self._cover[piece.windows, i] = 1

    def sum_across(self, values: Tensor) -> Tensor:
        """Sums over the part of a band in each window across, from the sums over its cells [cells across, ...]."""
        return torch.tensordot(self._cover.to(values), values, 1)

    def average_across(self, values: Tensor) -> Tensor:
        """For each cell of a band, the mean of values [windows across, ...] over the windows that contain the cell."""
        return torch.tensordot((self._cover / self._cover.sum(0)).t().to(values), values, 1)
