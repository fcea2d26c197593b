"""The compiled libraries and how they are called: by ctypes, after a check of every argument's name, type and shape."""

import ctypes
import functools
import logging
import operator
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import kept_memory
from dlgsanet.ops.backends.native import build
from dlgsanet.ops.backends.native.build import instruction_sets, library_name
from dlgsanet.ops.backends.native.signatures import SIGNATURES, Shapes

logger = logging.getLogger("dlgsanet")

_INTEGERS = frozenset({"band_pieces", "column_pieces"})  # int64; all other tensors are float32

# OpenMP's threads do not survive a fork, so a forked process computes with one thread, as PyTorch's DataLoader does.
_forked = False


def _compute_alone() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)


def instruction_set() -> str:
    """The instruction set of the library for this process: the one that PyTorch's own kernels use."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    return here if here in instruction_sets() else "portable"


def library_path() -> Path:
    return _path(instruction_set())


@functools.cache
def _path(instruction_set: str) -> Path:
    return Path(__file__).with_name(library_name(instruction_set))


def problem() -> str | None:
    """Why there is no library that this process can call, or None."""
    try:
        library = _loaded(library_path())  # asked before every layer: once it is loaded, no look at the disk
    except FileNotFoundError:
        return f"its library is not built (python {build.__file__}, with a C++ compiler)"
    return library if isinstance(library, str) else None


@functools.cache
def _loaded(path: Path) -> ctypes.CDLL | str:
    """The library, or why it cannot be loaded: it may be damaged, or of a machine with a newer C library."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        problem = f"its library cannot be loaded ({error}); delete it, then build it here: python {build.__file__}"
        logger.warning("CPU: the native backend is not used: %s", problem)
        return problem


@functools.cache
def _entry(path: Path, function: str, tensors: int, sizes: int) -> Any:
    entry = getattr(_loaded(path), f"dlgsanet_{function}")
    entry.argtypes = [ctypes.c_void_p] * tensors + [ctypes.c_ssize_t] * sizes + [ctypes.c_int]
    entry.restype = ctypes.c_bool
    return entry


def call(function: str, **arguments: Tensor | int) -> None:
    """Call ``dlgsanet_<function>``.

    Args:
        function: a key of `SIGNATURES`.
        arguments: all its tensors, contiguous and on the CPU, and all its sizes, by name.

    Raises:
        TypeError: an argument is missing, unknown or of the wrong type, dtype, device or layout.
        ValueError: the sizes do not fit each other, or a tensor does not have the shape that they give.
        MemoryError: there is not enough memory for the threads' scratch.
    """
    names = SIGNATURES[function].sizes
    if missing := set(names) - arguments.keys():
        raise TypeError(f"{function}: missing arguments: {', '.join(sorted(missing))}")
    sizes = [_number(function, name, arguments[name]) for name in names]
    shapes = _shapes(function, *sizes)
    if wrong := arguments.keys() ^ {*shapes, *names}:
        raise TypeError(f"{function}: missing or unknown arguments: {', '.join(sorted(wrong))}")
    memory = [_address(function, name, arguments[name], shape) for name, shape in shapes.items()]
    threads = 1 if _forked else torch.get_num_threads()
    entry = _entry(library_path(), function, len(memory), len(sizes))

    def compute() -> None:
        if not entry(*memory, *sizes, threads):
            raise MemoryError(f"not enough memory for {function}")

    kept_memory.run(compute, [argument for argument in arguments.values() if isinstance(argument, Tensor)])


def gradients(function: str, of: dict[str, Tensor], **arguments: Tensor | int) -> list[Tensor]:
    """Call a function that writes the gradients of some contiguous tensors; they are its arguments ``grad_<name>``."""
    grads = {f"grad_{name}": torch.empty_like(tensor) for name, tensor in of.items()}
    call(function, **arguments, **grads)
    return list(grads.values())


@functools.lru_cache(maxsize=1024)
def _shapes(function: str, *sizes: int) -> Shapes:
    return SIGNATURES[function].shapes(*sizes)


def _address(function: str, name: str, tensor: Tensor | int, shape: tuple[int | None, ...]) -> int:
    dtype = torch.int64 if name in _INTEGERS else torch.float32
    if not (isinstance(tensor, Tensor) and tensor.is_cpu and tensor.dtype == dtype and tensor.is_contiguous()):
        found = type(tensor).__name__
        if isinstance(tensor, Tensor):
            layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
            found = f"{tensor.dtype} on {tensor.device}, {layout}"
        raise TypeError(f"{function}: {name} must be a contiguous tensor of {dtype} on the CPU, not {found}")
    if tensor.shape != shape and not _is_like(tensor.shape, shape):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{function}: {name} must be [{wanted}], got {list(tensor.shape)}")
    return tensor.data_ptr()


def _is_like(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(n in (None, m) for n, m in zip(wanted, shape, strict=True))


def _number(function: str, name: str, number: Tensor | int) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{function}: {name} must be a whole number, not {type(number).__name__}") from None
