"""The layout of tiles that have the TLC windows of the whole image, for images that do not fit into memory whole.

SparseGSA forms its matrices from whole TLC windows, which lie evenly over the whole image. A tile of any other size has
other windows, other matrices, and a visible border. Here a tile is a run of the whole image's windows. The rule that
places windows gives it the same ones again, except at the end of an axis: the last step there is shorter, and the
windows of the last tile may lie a few pixels off. Windows around the kept ones are the halo, which is cut off.
"""

from dataclasses import dataclass
from itertools import pairwise

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sparse_gsa import tlc_window
from dlgsanet.ops.windows import window_starts

HALO_WINDOWS = 1


@dataclass(frozen=True)
class Span:
    """What a tile takes of one axis, in input pixels: it reads [first, last) and keeps [start, stop)."""

    first: int
    last: int
    start: int
    stop: int

    def kept(self, scale: int) -> slice:
        """The kept part within the tile's output."""
        return slice((self.start - self.first) * scale, (self.stop - self.first) * scale)


def tiles_of(network: DLGSANet, height: int, width: int, side: int | None) -> tuple[list[Span], list[Span]]:
    """Spans down the height and across the width; `side` is what a tile keeps, None: the whole image."""
    window = tlc_window(network)
    if side is None or window is None:
        return spans(height, height, height), spans(width, width, width)
    return spans(height, window, side), spans(width, window, side)


def spans(size: int, window: int, tile: int) -> list[Span]:
    """Tiles along an axis of `size` pixels.

    Args:
        size: pixels of the axis.
        window: side of the TLC windows (`tlc_kernel`).
        tile: about how many pixels a tile keeps: rounded to whole windows, at least one.
    """
    starts = window_starts(size, window)
    count = len(starts)
    tiles = max(1, -(-size // max(tile, window)))
    cuts = sorted({round(count * i / tiles) for i in range(tiles + 1)})
    found = []
    for i, j in pairwise(cuts):
        before, after = max(i - HALO_WINDOWS, 0), min(j + HALO_WINDOWS, count)
        found.append(
            Span(
                starts[before],
                starts[after - 1] + min(size, window),
                starts[i],
                starts[j] if j < count else size,
            )
        )
    return found
