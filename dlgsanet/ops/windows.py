"""Positions of the windows of test-time local conversion, and the pieces between their borders.

TLC: Chu et al., ECCV 2022, arXiv 2112.04491. Windows overlap. All pixels between two neighbouring borders (a piece) lie
in the same windows. A sum over a window is therefore a sum over its pieces, and averaging the results of the windows is
one linear map per piece. Every pixel is read once, whatever the overlap.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Pixels [start, stop) of an axis, and the first and last window that contain them."""

    start: int
    stop: int
    first_window: int
    last_window: int

    @property
    def pixels(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def windows(self) -> slice:
        return slice(self.first_window, self.last_window + 1)


def window_starts(size: int, window: int) -> list[int]:
    """First pixel of each window of min(size, window) pixels along an axis of `size` pixels.

    There are as few windows as possible, at equal distances in whole pixels. The last window ends at the border and may
    be closer to its neighbour.
    """
    window = min(size, window)
    if size == window:
        return [0]
    count = (size - 1) // window + 1
    step = -(-(size - window) // (count - 1))
    return [*range(0, size - window, step), size - window]


def covering_windows(size: int, window: int, device: torch.device | None = None) -> Tensor:
    """Pixel indices [windows, min(size, window)] of every window along an axis of `size` pixels."""
    starts, window = window_starts(size, window), min(size, window)
    step = starts[1] if len(starts) > 1 else 0
    # Computed on the device: a CUDA graph cannot capture a copy from the CPU.
    first = (torch.arange(len(starts), device=device) * step).clamp(max=size - window)
    return first[:, None] + torch.arange(window, device=device)


def pieces(size: int, window: int | None, *, longest: int | None = None, grid: int | None = None) -> list[Piece]:
    """The pieces between the borders of the windows along an axis, in order.

    Args:
        size: length of the axis in pixels.
        window: side of the windows in pixels; None: one window, the whole axis.
        longest: longer pieces are divided into equal parts of at most this many pixels.
        grid: pieces are also divided at every multiple of this number of pixels.
    """
    window = min(size, window or size)
    starts = window_starts(size, window)
    borders = sorted({*starts, *(start + window for start in starts), *range(0, size, grid or size)})
    found = []
    for start, stop in pairwise(borders):
        holders = [n for n, first in enumerate(starts) if first <= start < first + window]
        length = stop - start
        step = -(-length // -(-length // (longest or length)))  # even parts
        found += [Piece(a, min(a + step, stop), holders[0], holders[-1]) for a in range(start, stop, step)]
    return found


class TracedWindows:
    """The windows along an axis, computed from a size that may be a symbol, for exported graphs of any image size.

    Window i starts at ``min(i * step, size - side)``, and no pixel lies in more than two windows. So the average over
    the windows of a pixel is that of its first and its last window, and gathering replaces summation.

    Args:
        size: length of the axis in pixels, a number or a symbol.
        window: side of the windows in pixels.
    """

    def __init__(self, size: Any, window: int, device: torch.device | None = None):
        self.side = torch.sym_min(size, window)
        self.count = (size - 1) // self.side + 1
        gaps = torch.sym_max(self.count - 1, 1)
        step = torch.sym_max((size - self.side + gaps - 1) // gaps, 1)
        self.starts = (torch.arange(self.count, device=device) * step).clamp(max=size - self.side)
        pixel = torch.arange(size, device=device)
        last = torch.where(pixel >= size - self.side, self.count - 1, pixel // step)
        first = ((pixel - self.side + step) // step).clamp(min=0, max=self.count - 1)
        self.pixels = (self.starts[:, None] + torch.arange(self.side, device=device)).flatten()
        self.first, self.last = (w * self.side + pixel - self.starts[w] for w in (first, last))

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Split axis `dim` into two: windows, and pixels in a window."""
        return x.index_select(dim, self.pixels).unflatten(dim, (self.count, self.side))

    def join(self, x: Tensor, dim: int) -> Tensor:
        """Merge axes `dim` (windows) and ``dim + 1`` (their pixels) again; average where windows overlap."""
        x = x.flatten(dim, dim + 1)
        return (x.index_select(dim, self.first) + x.index_select(dim, self.last)) / 2
