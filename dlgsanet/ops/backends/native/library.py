"""The compiled libraries and how they are called: by ctypes, on tensors' memory."""

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from dlgsanet.ops.backends.native.build import instruction_sets, library_name

# OpenMP's threads do not outlive a fork: a child of this process works alone (torch says the same to its DataLoader's).
_forked = False


def _work_alone() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)


def instruction_set() -> str:
    """The instruction set whose library serves this process: what PyTorch's own kernels use."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    return here if here in instruction_sets() else "portable"


def library_path() -> Path:
    return Path(__file__).with_name(library_name(instruction_set()))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def call(function: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Call ``dlgsanet_<function>(tensors' memory..., sizes..., threads)``; the tensors must be contiguous.

    Raises:
        MemoryError: there was not enough for the threads' scratch.
    """
    entry = getattr(_load(library_path()), f"dlgsanet_{function}")
    entry.restype = ctypes.c_bool
    threads = 1 if _forked else torch.get_num_threads()
    memory = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    if not entry(*memory, *map(ctypes.c_ssize_t, sizes), ctypes.c_int(threads)):
        raise MemoryError(f"not enough memory for {function}")


def round_up(count: int) -> int:
    """Columns of a matrix that the libraries add up in: whole registers of the widest kind."""
    return -(-count // 16) * 16


def strips(batch: int, height: int) -> int:
    """How many parts of a weight's gradient a backward pass keeps apart (`Strips` in partial_sums.h)."""
    return batch * -(-height // 64)
