"""Memory for feature maps that is kept while a network runs, instead of returned to the system after every layer.

glibc unmaps large blocks when they are freed. The next layer's blocks are then new pages, which the system clears and
maps one by one: a third of the time of a network on a CPU. Here, a feature map that is freed leaves its block to the
next one. Blocks lie in huge pages where the system has them (2 MiB in place of 4 KiB).
"""

import ctypes
import functools
import math
import mmap
import threading
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

HUGE_PAGE = 2**21
LEAST = 2**20  # bytes; smaller blocks are kept by every allocator

_active = threading.local()


class KeptMemory:
    """A context in which `empty_like` and `empty` of this thread take their memory from blocks that are kept.

    A block is free again when the last tensor in it is gone, whoever held it: a tensor that is still used is never
    overwritten, also after the context. Blocks are returned to the system when this object and all tensors are gone.
    """

    def __init__(self) -> None:
        _keep_small_blocks()
        self._blocks: list[tuple[mmap.mmap, weakref.ref[Any]]] = []  # each with its lease, see `floats`
        self._outer: list[KeptMemory | None] = []
        self.taken = 0  # bytes of all blocks

    def __enter__(self) -> "KeptMemory":
        self._outer.append(getattr(_active, "memory", None))
        _active.memory = self
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _active.memory = self._outer.pop()

    def clear(self) -> None:
        """Return the blocks that no tensor uses to the system."""
        self._blocks = [(block, lease) for block, lease in self._blocks if lease() is not None]

    def floats(self, count: int) -> Tensor:
        """A tensor [count] of float32 in a block of its own."""
        needed = 4 * count + HUGE_PAGE  # up to a page to begin at a multiple of its size
        # Leases are checked here, not by a callback when one ends: Python ignores Ctrl-C in callbacks.
        free = [kept for kept in self._blocks if kept[1]() is None and needed <= len(kept[0]) <= 2 * needed]
        if free:
            kept = min(free, key=lambda kept: len(kept[0]))
            self._blocks.remove(kept)
            block = kept[0]
        else:
            block = _new_block(needed)
            self.taken += len(block)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % HUGE_PAGE
        lease = (ctypes.c_float * count).from_buffer(block, start)
        # The tensor holds the lease. When the tensor's memory is freed, in whichever thread, the block is free.
        self._blocks.append((block, weakref.ref(lease)))
        return torch.frombuffer(lease, dtype=torch.float32)


@functools.cache
def _keep_small_blocks() -> None:
    """Have glibc keep blocks below 32 MB that PyTorch's convolutions free, such as copies of a strip.

    glibc maps blocks separately, and unmaps them, from a size that it raises to that of the largest block that it has
    unmapped so far (M_MMAP_THRESHOLD in mallopt(3)). The memory here is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def _new_block(size: int) -> mmap.mmap:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    options: dict[str, Any] = private
    try:
        block = mmap.mmap(-1, size, **options)
    except OSError as error:
        raise MemoryError(f"not enough memory for a feature map of {size / 2**20:.0f} MiB") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def empty(*shape: int) -> Tensor:
    """`torch.empty` in float32 on the CPU; within a `KeptMemory`, large tensors are in its blocks."""
    memory: KeptMemory | None = getattr(_active, "memory", None)
    count = math.prod(shape)
    if memory is None or 4 * count < LEAST:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    return memory.floats(count).view(shape)


def empty_like(x: Tensor) -> Tensor:
    """`empty` in the shape of x, which is in float32 on the CPU."""
    return empty(*x.shape)
