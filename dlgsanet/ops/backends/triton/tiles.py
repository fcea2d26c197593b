"""Tiles of an image whose pixels lie in the same windows of test-time local conversion; see `dlgsanet.ops.windows`."""

from typing import NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops.cached_tensors import cached_tensors
from dlgsanet.ops.windows import pieces

TILE_COLUMNS = 16  # the most of a tile


class Strip(NamedTuple):
    """Rows [top, bottom) of an image, and its tiles: so many from the first one."""

    top: int
    bottom: int
    first: int
    tiles: int

    @property
    def first_row(self) -> int:
        """The row above it, which filters need, if there is one."""
        return max(self.top - 1, 0)


class Tiles(NamedTuple):
    """The tiles of an image.

    Attributes:
        tiles: [T, 8] of each tile: first row and end of its rows, the same of its columns, and four windows. The result
            of a pixel is the mean of theirs. They may be the same.
        strips: the tiles of each strip of the image.
        windows: their number n.
        members: the tiles in each window, one window after the other.
        offsets: [n + 1], where the tiles of each window begin in `members`, and where the last ones end.
    """

    tiles: Tensor
    strips: list[Strip]
    windows: int
    members: Tensor
    offsets: Tensor


@cached_tensors(maxsize=64)
def tiles_of(height: int, width: int, window: int, rows: int, highest: int, device: torch.device) -> Tiles:
    """The tiles, of at most `highest` rows, of an image that is processed in strips of `rows` rows."""
    down = torch.tensor(pieces(height, window, longest=highest, grid=rows))  # [n, 4]: see `Piece`
    across = torch.tensor(pieces(width, window, longest=TILE_COLUMNS))
    windows_across = int(across[-1, 3]) + 1
    windows = windows_across * (int(down[-1, 3]) + 1)
    y, x = down.repeat_interleave(len(across), 0), across.repeat(len(down), 1)
    of_tile = y[:, [2, 2, 3, 3]] * windows_across + x[:, [2, 3, 2, 3]]
    tiles = torch.cat([y[:, :2], x[:, :2], of_tile], 1).int()
    pairs = (of_tile * len(tiles) + torch.arange(len(tiles))[:, None]).unique()  # by window, then by tile
    members, offsets = pairs % len(tiles), torch.searchsorted(pairs, len(tiles) * torch.arange(windows + 1))
    tops = torch.arange(0, height, rows)
    firsts = [*torch.searchsorted(y[:, 0].contiguous(), tops).tolist(), len(tiles)]
    strips = [
        Strip(top, min(top + rows, height), firsts[i], firsts[i + 1] - firsts[i]) for i, top in enumerate(tops.tolist())
    ]
    return Tiles(tiles.to(device), strips, windows, members.int().to(device), offsets.int().to(device))
