"""How many rows of an image a layer processes at a time on a GPU, from the memory that is free there."""

import functools
import math

import torch
from torch import Tensor

from dlgsanet.memory import free_memory

MOST_BYTES = 1 << 30  # of hidden tensors at once: larger strips are not faster
SHARE_OF_FREE = 0.25  # the rest is for images, the allocator and others
SHARE_OF_FREE_FOR_TRAINING = 0.5
FEWEST_ROWS = 8  # below this, rows of the halo cost more than the strip


def rows_of_strip(x: Tensor, floats: float) -> int:
    """Rows of a strip of x [B, C, H, W] with `floats` hidden values per pixel.

    It is planned once per shape: asking a GPU for its free memory takes longer than starting a layer.
    """
    return _plan(tuple(x.shape), x.element_size(), x.device, floats)


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], item: int, device: torch.device, floats: float) -> int:
    batch, _, height, width = shape
    free = free_memory(device)
    budget = MOST_BYTES if free is None else min(MOST_BYTES, SHARE_OF_FREE * max(0, free))
    rows = max(FEWEST_ROWS, int(budget // max(1, batch * width * floats * item)))
    return math.ceil(height / math.ceil(height / rows)) if height else 1  # strips of equal height


@functools.lru_cache(maxsize=256)
def fits(shape: tuple[int, ...], item: int, device: torch.device, floats: float) -> bool:
    """Whether a device has room for `floats` more values per pixel of x [B, C, H, W]; once per shape too."""
    batch, _, height, width = shape
    free = free_memory(device)
    return free is None or batch * height * width * floats * item < SHARE_OF_FREE_FOR_TRAINING * free
