"""Where the windows of test-time local conversion lie, and the pieces between their borders.

TLC: Chu et al., ECCV 2022, arXiv 2112.04491. Windows overlap. All pixels between two neighbouring borders lie in the
same windows: a sum over the pixels of a window is a sum over its pieces, and the average of what the windows make of a
pixel is one linear map for a whole piece. So the pixels are read once, however the windows overlap.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Pixels [start, stop) of an axis, and the first and last of the windows that hold them all."""

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
    """First pixels of the windows of min(size, window) pixels that cover an axis of `size` pixels.

    As few windows as can cover the axis, evenly spaced in whole pixels; the last one ends at the border.
    """
    window = min(size, window)
    if size == window:
        return [0]
    count = (size - 1) // window + 1
    step = -(-(size - window) // (count - 1))
    return [*range(0, size - window, step), size - window]


def covering_windows(size: int, window: int, device: torch.device | None = None) -> Tensor:
    """Pixel numbers [windows, min(size, window)] of every window along an axis of `size` pixels."""
    starts, window = window_starts(size, window), min(size, window)
    step = starts[1] if len(starts) > 1 else 0
    # Computed on the device: a copy from the CPU could not be captured in a CUDA graph.
    first = (torch.arange(len(starts), device=device) * step).clamp(max=size - window)
    return first[:, None] + torch.arange(window, device=device)


def pieces(size: int, window: int | None, *, longest: int | None = None, grid: int | None = None) -> list[Piece]:
    """The pieces of an axis of `size` pixels between the borders of its windows, in order.

    Args:
        size: pixels of the axis.
        window: side of the windows in pixels; None: one window, the whole axis.
        longest: longer pieces are divided into even parts of at most so many pixels.
        grid: pieces are divided at every multiple of it.
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
    """The windows along an axis in numbers that may be symbols, for graphs that serve every size.

    Window i starts at ``min(i * step, size - side)``, and no pixel lies in more than two of them. So the average over
    a pixel's windows is that of the first and the last: gathering takes the place of adding up.

    Args:
        size: pixels of the axis, a number or a symbol.
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
        """Axis `dim` becomes two: windows, and pixels in a window."""
        return x.index_select(dim, self.pixels).unflatten(dim, (self.count, self.side))

    def join(self, x: Tensor, dim: int) -> Tensor:
        """Axes `dim` (windows) and ``dim + 1`` (their pixels) become one again, averages where windows overlap."""
        x = x.flatten(dim, dim + 1)
        return (x.index_select(dim, self.first) + x.index_select(dim, self.last)) / 2
