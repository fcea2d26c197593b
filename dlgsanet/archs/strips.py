"""Functions on images strip by strip, so that their results exist for a few rows at a time."""

from collections.abc import Callable, Iterator

from torch import Tensor

from dlgsanet.ops.constants import CONVOLVED_ROWS

STRIP_PIXELS = 2**17  # per strip: the halo adds little, and hidden features stay below 100 MB for published sizes
# For a convolution on a CPU: its copies in the library's own layout stay in the cache.
CONVOLUTION_PIXELS = 2**14
MIN_ROWS = 16


def rows_of_strip(width: int, halo: int = 0, pixels: int | None = None) -> int:
    """Rows of a strip of an image of this width, without the halo."""
    return _whole(max(MIN_ROWS, halo, (pixels or STRIP_PIXELS) // width))


def _whole(rows: int) -> int:
    # The native backend convolves rows together. Strips from a multiple on have the same rows together as the whole
    # image, so their results are the same to the last bit.
    return -(-rows // CONVOLVED_ROWS) * CONVOLVED_ROWS


def strips(
    function: Callable[..., Tensor], x: Tensor, halo: int, scale: int = 1, pixels: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of x [B, C, H, W], and ``function(x)`` (`scale` times as high) there.

    Zero padding stays right: a strip with its halo ends within the image or at its border.

    Args:
        function: a row of its result depends on `halo` rows above and below.
        pixels: of a strip; None: `STRIP_PIXELS`.
    """
    height, width = x.shape[2:]
    rows, halo = rows_of_strip(width, halo, pixels), _whole(halo)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - halo, 0), min(bottom + halo, height)
        out = function(x[:, :, first:last])
        yield slice(top, bottom), out[:, :, (top - first) * scale : (bottom - first) * scale]


def write(
    function: Callable[[Tensor], Tensor], x: Tensor, halo: int, into: Tensor, pixels: int | None = None
) -> Tensor:
    """Write ``function(x)``, which has the height of x, into `into` strip by strip. `into` may be x itself."""
    written: tuple[slice, Tensor] | None = None
    for rows, part in strips(function, x, halo, pixels=pixels):
        if written:  # one strip late, since the one after it still reads its last rows
            into[:, :, written[0]] = written[1]
        written = rows, part
    if written:
        into[:, :, written[0]] = written[1]
    return into


def add(function: Callable[[Tensor], Tensor], x: Tensor, halo: int, into: Tensor, pixels: int | None = None) -> None:
    """Add ``function(x)``, which has the height of x, to `into` strip by strip. `into` must not be x."""
    for rows, part in strips(function, x, halo, pixels=pixels):
        into[:, :, rows] += part
