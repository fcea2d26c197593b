"""From the memory that is free: how many rows of an image a layer processes at a time on a GPU, and what it keeps."""

import functools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dlgsanet.memory import free_memory

MOST_BYTES = 1 << 30  # of hidden tensors at once: larger strips are not faster
SHARE_OF_FREE = 0.25  # the rest is for images, the allocator and others
SHARE_OF_FREE_FOR_TRAINING = 0.5
FEWEST_ROWS = 8  # below this, rows of the halo cost more than the strip
MOST_LAYERS = 100  # of a network that does not say how many it has

_network = threading.local()


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


@contextmanager
def layers_of_network(count: int, keep_x_alone: int = 0) -> Iterator[None]:
    """Within the context, `fits` expects that a network of so many layers runs in this thread, of which so many keep
    their input alone."""
    before = getattr(_network, "layers", (MOST_LAYERS, 0))
    _network.layers = count, keep_x_alone
    try:
        yield
    finally:
        _network.layers = before


def fits(x: Tensor, bytes_per_value: float) -> bool:
    """Whether the device of x has room for what every layer of the network keeps; planned once per shape.

    Args:
        x: the input of a layer.
        bytes_per_value: kept by a layer, for every value of x.
    """
    layers, keep_x_alone = getattr(_network, "layers", (MOST_LAYERS, 0))
    per_value = (layers - keep_x_alone) * bytes_per_value + keep_x_alone * x.element_size()
    return _fits(tuple(x.shape), x.device, per_value)


@functools.lru_cache(maxsize=256)
def _fits(shape: tuple[int, ...], device: torch.device, bytes_per_value: float) -> bool:
    free = free_memory(device)
    return free is None or math.prod(shape) * bytes_per_value < SHARE_OF_FREE_FOR_TRAINING * free
