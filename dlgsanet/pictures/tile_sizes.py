"""Choose the size of tiles, so that the work fits into free memory."""

from collections.abc import Iterator

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sparse_gsa import SparseGSA, tlc_window
from dlgsanet.archs.strips import rows_of_strip
from dlgsanet.errors import ArgumentError, is_whole, unknown
from dlgsanet.memory import free_memory
from dlgsanet.ops import dispatch
from dlgsanet.pictures.tile_layout import tiles_of

TILE_SIDES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96)  # pixels kept per side, largest first

# Feature maps of the tile's size that are alive at once, of networks of local layers; see `Backend.feature_maps`.
FEATURE_MAPS_OF_LOCAL_LAYERS = 5
STRIP_FEATURE_MAPS = 4  # of a strip's size, for the hidden features of local layers; measured: at most 2
SHARE_OF_FREE = 0.8  # of free memory that is planned with: others use it too


def tile_sizes_to_try(network: DLGSANet, height: int, width: int, tile: str | int) -> Iterator[int | None]:
    """Sides of tiles in the order in which to try them; None is the whole image at once.

    Args:
        network: what will run.
        height, width: of the image in pixels.
        tile: ``auto``, ``exact``, or the pixels that a tile keeps per side (0 is exact, as in other programs).

    Raises:
        ValueError: another `tile`.
        ArgumentError: tiles for a network whose attention spans the whole image.
    """
    if tile not in ("auto", "exact") and not is_whole(tile):
        raise ValueError(unknown("tile", tile, ["auto", "exact", "a whole number of pixels"]))
    if tile in ("exact", 0):
        yield None
        return
    if tlc_window(network) is None:
        if tile != "auto":
            raise ArgumentError("tile", "this network's attention spans the whole image (tlc_flag: false); use exact")
        yield None
        return
    if isinstance(tile, int):
        yield tile
        return
    free = free_memory(network.shallow.weight.device)
    sides = [None, *(side for side in TILE_SIDES if side < max(height, width))]
    fitting = [s for s in sides if free is None or needed_memory(network, height, width, s) < SHARE_OF_FREE * free]
    yield from fitting or sides[-1:]


def needed_memory(network: DLGSANet, height: int, width: int, side: int | None) -> int:
    """About how many bytes it takes to upscale an image, without the image and its result.

    Args:
        network: what will run.
        height, width: of the image in pixels.
        side: pixels that a tile keeps per side; None: the whole image at once.
    """
    weight = network.shallow.weight
    down, across = tiles_of(network, height, width, side)
    rows, columns = max(s.last - s.first for s in down), max(s.last - s.first for s in across)
    strip = min(rows, rows_of_strip(columns)) * columns
    values = rows * columns * _feature_maps(network) + strip * STRIP_FEATURE_MAPS
    return values * len(weight) * weight.element_size()


def _feature_maps(network: DLGSANet) -> int:
    """Feature maps of the tile's size that are alive at once."""
    layer = next((module for module in network.modules() if isinstance(module, SparseGSA)), None)
    if layer is None:
        return FEATURE_MAPS_OF_LOCAL_LAYERS
    x = layer.norm.weight.new_zeros(1, len(layer.norm.weight), 1, 1)
    return dispatch.select(layer.record(), x).feature_maps
