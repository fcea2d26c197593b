"""Choose the size of tiles, so that the work fits into free memory."""

from collections.abc import Iterator

import torch

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sparse_gsa import SparseGSA, tlc_window
from dlgsanet.archs.strips import rows_of_strip
from dlgsanet.errors import ArgumentError, UserError, is_whole, unknown
from dlgsanet.memory import free_memory
from dlgsanet.ops import dispatch
from dlgsanet.pictures.tile_layout import tiles_of

TILE_SIDES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96)  # pixels kept per side, largest first

# Feature maps of the tile's size that are alive at once, of networks of local layers; see `Backend.feature_maps`.
FEATURE_MAPS_OF_LOCAL_LAYERS = 3.2
STRIP_FEATURE_MAPS = 4  # of a strip's size, for the hidden features of local layers; measured: at most 2
OTHER_MEMORY = 32 * 2**20  # what does not depend on the size, on a CPU; measured: 19 to 29 MiB
SHARE_OF_FREE = 0.8  # of free memory that tiles are planned with: others use it too


def tile_sizes_to_try(
    network: DLGSANet, height: int, width: int, tile: str | int, result_bytes: int = 0
) -> Iterator[int | None]:
    """Sides of tiles in the order in which to try them; None is the whole image at once.

    Args:
        network: what will run.
        height, width: of the image in pixels.
        tile: ``auto``, ``exact``, or the pixels that a tile keeps per side (0 is exact, as in other programs).
        result_bytes: that are needed for the result.

    Raises:
        ValueError: another `tile`.
        ArgumentError: tiles for a network whose attention spans the whole image.
        UserError: the last size needs more than the free memory of the CPU.
    """
    device, sides = network.shallow.weight.device, _sides(network, height, width, tile)
    free = free_memory(device)
    needed = [needed_memory(network, height, width, side) + result_bytes for side in sides]
    for side, bytes_ in zip(sides[:-1], needed, strict=False):
        if free is None or bytes_ < SHARE_OF_FREE * free:
            yield side
    if device.type == "cpu":
        refuse_beyond_free(needed[-1], f"{width}x{height} pixels (tile: {tile})", what_to_do(tile))
    yield sides[-1]


def _sides(network: DLGSANet, height: int, width: int, tile: str | int) -> list[int | None]:
    """What may be tried, the largest first."""
    if tile not in ("auto", "exact") and not is_whole(tile):
        raise ValueError(unknown("tile", tile, ["auto", "exact", "a whole number of pixels"]))
    if tile in ("exact", 0):
        return [None]
    if tlc_window(network) is None:
        if tile != "auto":
            raise ArgumentError("tile", "this network's attention spans the whole image (tlc_flag: false); use exact")
        return [None]
    return [tile] if isinstance(tile, int) else [None, *(side for side in TILE_SIDES if side < max(height, width))]


def refuse_beyond_free(needed: int, what: str, remedy: str) -> None:
    """Raise a UserError if so many bytes are not free on the CPU.

    Linux would give out the memory, and end the process when it is used.
    """
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free; {remedy}"
        )


def what_to_do(tile: str | int) -> str:
    """The end of a message about too little memory."""
    return {"exact": "use auto", "auto": "free some"}.get(str(tile), "free some, or use smaller tiles")


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
    values = rows * columns * _feature_maps(network)
    if _global_layer(network) is None or not weight.is_cpu:  # on a CPU global layers need more than strips
        values += min(rows, rows_of_strip(columns)) * columns * STRIP_FEATURE_MAPS
    return int(values * len(weight) * weight.element_size()) + OTHER_MEMORY


def _feature_maps(network: DLGSANet) -> float:
    """Feature maps of the tile's size that are alive at once."""
    layer = _global_layer(network)
    if layer is None:
        return FEATURE_MAPS_OF_LOCAL_LAYERS
    x = layer.norm.weight.new_zeros(1, len(layer.norm.weight), 1, 1)
    return dispatch.select(layer.record(), x).feature_maps


def _global_layer(network: DLGSANet) -> SparseGSA | None:
    return next((module for module in network.modules() if isinstance(module, SparseGSA)), None)
