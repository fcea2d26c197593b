"""The CUDA kernels on a CPU: g++ compiles their source (see cuda_host.h), which runs thread by thread (fibers.cpp)."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from dlgsanet.ops.backends.cuda.modules import KERNELS, Instance

ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}
GUARD_BYTES = 8192

COMPILER = shutil.which("g++")
HERE = Path(__file__).parent
folder = Path("set by conftest.py")  # of the libraries
# An access that would fail on a GPU, or go to a wrong address, ends the process. This needs no library or message.
CHECKS = ["-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
OPTIONS = ["-std=c++17", "-shared", "-fPIC", "-w"]


def _compile(name: str, *arguments: str) -> Path:
    """The library that g++ makes with these arguments; it is kept for all processes of this run of the tests."""
    library = folder / name
    if not library.exists():
        own = library.with_suffix(f".{os.getpid()}")
        command = [COMPILER or "g++", *OPTIONS, *arguments, "-o", str(own)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        own.replace(library)
    return library


@functools.cache
def build(instance: Instance) -> ctypes.CDLL:
    """The instance as a library for this machine.

    Raises:
        RuntimeError: the source does not compile.
    """
    fibers = _compile("fibers.so", "-O2", str(HERE / "fibers.cpp"))
    key = hashlib.sha256(repr(instance).encode()).hexdigest()
    library = _compile(
        f"{key}.so", *CHECKS, "-Og", f"-I{HERE}", f"-I{KERNELS}", *instance.options,
        f"-DKERNELS_OF_{Path(instance.source).stem}",
        f'-DSOURCE="{instance.source}"', str(HERE / "kernels.cpp"), str(fibers),
    )  # fmt: skip
    return ctypes.CDLL(str(library))


class EmulatedModule:
    """Replaces `cuda_modules.Module`: every launch runs in this process.

    During a launch, tensors lie between guard bands of NaN. Reading outside a tensor spoils the result, and writing
    outside a tensor is an error. The barrier at `without_barrier` ("file:line") is left out.
    """

    def __init__(self, instance: Instance, order: str, without_barrier: str = ""):
        self.library = build(instance)
        self.library.remove_barrier(without_barrier.encode())
        self.order = ORDERS[order]

    def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: Tensor | int | None) -> None:
        guarded = [Guarded(a) if isinstance(a, Tensor) else a for a in args]
        self.run(kernel, 0, blocks, threads, shared_bytes, guarded)
        for g in guarded:
            if isinstance(g, Guarded):
                g.put_back(kernel)

    def run(self, kernel: str, first: int, count: int, threads: int, shared_bytes: int, args: list) -> None:
        """Blocks first ... first + count - 1 of a launch."""
        values = [_value(a) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        self.run_addresses(kernel, first, count, threads, shared_bytes, ctypes.addressof(pointers))

    def run_addresses(
        self, kernel: str, first: int, count: int, threads: int, shared_bytes: int, addresses: int
    ) -> None:
        """The same with arguments as for the driver: the address of an array of their addresses."""
        run = getattr(self.library, f"emulate_{kernel}")
        run.argtypes = [
            ctypes.c_longlong,
            ctypes.c_longlong,
            ctypes.c_uint,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        run.restype = ctypes.c_char_p
        if fault := run(first, count, threads, shared_bytes, self.order, addresses):
            raise RuntimeError(f"{kernel}: {fault.decode()}")


class LastBlocks(EmulatedModule):
    """Runs only the last blocks of a launch, on the tensors themselves, for images that are larger than memory."""

    def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: Tensor | int | None) -> None:
        count = min(blocks, 4)
        self.run(kernel, blocks - count, count, threads, shared_bytes, list(args))


def _value(argument: "Guarded | Tensor | int | None"):
    if isinstance(argument, int):
        return ctypes.c_longlong(argument)  # its first four bytes are the same number as an int
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


class Guarded:
    """A copy of a tensor between two bands of bytes that are NaN in every dtype, as are gaps between its numbers."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        count = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = count * tensor.element_size()
        misalignment = tensor.data_ptr() % 64
        self.memory = torch.full((64 + misalignment + size + 2 * GUARD_BYTES,), 0xFF, dtype=torch.uint8)
        start = -self.memory.data_ptr() % 64 + misalignment + GUARD_BYTES
        inside = self.memory[start : start + size].view(tensor.dtype)
        self.inside = inside.as_strided(tensor.shape, tensor.stride(), inside.storage_offset())
        self.inside.copy_(tensor.detach())
        self.bands = (self.memory[:start], self.memory[start + size :])

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def put_back(self, kernel: str) -> None:
        if any((band != 0xFF).any() for band in self.bands):
            raise RuntimeError(f"{kernel} writes outside of a tensor {list(self.tensor.shape)}")
        self.tensor.data.copy_(self.inside)  # .data: unseen by autograd, as on a GPU
