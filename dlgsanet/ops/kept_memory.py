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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

HUGE_PAGE = 2**21
LEAST = 2**20  # bytes; smaller blocks are kept by every allocator
SPARE = 2**26  # bytes that a process keeps between calls, as many as glibc keeps of smaller blocks

# A block, and the lease of the last tensor in it: see `KeptMemory.floats`.
_Block = tuple[mmap.mmap, weakref.ref[Any]]

_spare: list[_Block] = []
_lock = threading.Lock()  # of `_spare`
_active = threading.local()


class KeptMemory:
    """A context in which `empty_like` and `empty` of this thread take their memory from blocks that are kept.

    A block is free again when the last tensor in it is gone, whoever held it: a tensor that is still used is never
    overwritten, also after the context. At its end, up to `SPARE` bytes of the newest blocks are kept for later
    contexts. All others are returned to the system when this object and all tensors are gone.
    """

    def __init__(self) -> None:
        _keep_small_blocks()
        self._blocks: list[_Block] = []
        self._starts: set[int] = set()  # addresses of tensors in blocks
        self._outer: list[KeptMemory | None] = []
        self._waiting: list[tuple[Callable[[], object], list[Tensor]]] | None = None
        self.taken = 0  # bytes of all blocks

    def __enter__(self) -> "KeptMemory":
        self._outer.append(getattr(_active, "memory", None))
        _active.memory = self
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _active.memory = self._outer.pop()
        with _lock:  # the newest first: the next call's sizes are more likely those of this one
            blocks, _spare[:] = [*self._blocks, *_spare], []
            for block in blocks:
                if sum(len(spare) for spare, _ in (*_spare, block)) <= SPARE:
                    _spare.append(block)
        self._blocks = []

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """A block at whose end the calls run that this thread gives to `run` in it, in order.

        The code around the calls then runs while it is in the processor's caches, which layers fill with their data.
        Nothing else may use the results within the block.
        """
        waiting: list[tuple[Callable[[], object], list[Tensor]]] = []
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        for call, _ in waiting:
            call()

    def run(self, call: Callable[[], object], tensors: Iterable[Tensor]) -> None:
        """See `run` below."""
        if self._waiting is None:
            call()
        else:  # a block may be free before the call runs: it is used again by later calls only
            self._waiting.append((call, [t for t in tensors if t.data_ptr() not in self._starts]))

    def floats(self, count: int) -> Tensor:
        """A tensor [count] of float32 in a block of its own."""
        needed = 4 * count + HUGE_PAGE  # up to a page to begin at a multiple of its size
        # Leases are checked here, not by a callback when one ends: Python ignores Ctrl-C in callbacks.
        block = _taken(self._blocks, needed)
        if block is None:
            with _lock:
                block = _taken(_spare, needed)
            block = block or _new_block(needed)
            self.taken += len(block)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % HUGE_PAGE
        lease = (ctypes.c_float * count).from_buffer(block, start)
        # The tensor holds the lease. When the tensor's memory is freed, in whichever thread, the block is free.
        self._blocks.append((block, weakref.ref(lease)))
        tensor = torch.frombuffer(lease, dtype=torch.float32)
        self._starts.add(tensor.data_ptr())
        return tensor


@functools.cache
def _keep_small_blocks() -> None:
    """Have glibc keep blocks below 32 MB that PyTorch's convolutions free, such as copies of a strip.

    glibc maps blocks separately, and unmaps them, from a size that it raises to that of the largest block that it has
    unmapped so far (M_MMAP_THRESHOLD in mallopt(3)). The memory here is never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def _taken(blocks: list[_Block], needed: int) -> mmap.mmap | None:
    """Take the smallest free block from a list that has at least `needed` bytes, and at most twice as many."""
    free = [kept for kept in blocks if kept[1]() is None and needed <= len(kept[0]) <= 2 * needed]
    if not free:
        return None
    smallest = min(free, key=lambda kept: len(kept[0]))
    blocks.remove(smallest)
    return smallest[0]


def _new_block(size: int) -> mmap.mmap:
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"not enough memory for a feature map of {size / 2**20:.0f} MiB") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def release() -> None:
    """Return the blocks that are kept between calls to the system."""
    with _lock:
        _spare.clear()


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


def run(call: Callable[[], object], tensors: Iterable[Tensor]) -> None:
    """Run a call that reads and writes these tensors: now, or at the end of a block of `KeptMemory.deferring`."""
    memory: KeptMemory | None = getattr(_active, "memory", None)
    if memory is None:
        call()
    else:
        memory.run(call, tensors)
