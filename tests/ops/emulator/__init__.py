"""The CUDA kernels on a CPU: their own source, compiled by g++, run thread by thread (see cuda_host.h)."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from dlgsanet.ops.backends.cuda.modules import KERNELS, Instance

ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}
GUARD_BYTES = 8192

COMPILER = shutil.which("g++")
# What a GPU would fault at or take for another address ends the process: no library, and no message, is needed for it.
CHECKS = ["-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]


@functools.cache
def build(instance: Instance) -> ctypes.CDLL:
    """The instance as a library for this machine.

    Raises:
        RuntimeError: the source does not compile.
    """
    folder = Path(tempfile.mkdtemp(prefix="dlgsanet-emulator-"))
    library = folder / "kernels.so"
    source = Path(__file__).parent / "kernels.cpp"
    command = [
        COMPILER or "g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-w", *CHECKS, f"-I{KERNELS}", *instance.options,
        f"-DKERNELS_OF_{Path(instance.source).stem}",
        f'-DSOURCE="{instance.source}"', str(source), "-o", str(library),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)


class EmulatedModule:
    """Stands in for `cuda_modules.Module`: every launch runs in this process.

    Tensors are moved between guard bands of NaN for the launch, so that reading outside of one spoils the result and
    writing outside of one is an error. The barrier at `without_barrier`,
    "file:line", is left out.
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
        self.run_values(kernel, first, count, threads, shared_bytes, [_value(a) for a in args])

    def run_values(self, kernel: str, first: int, count: int, threads: int, shared_bytes: int, values: list) -> None:
        """The same, of arguments as a driver takes them: values of C's types, whose addresses it is given."""
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        run = getattr(self.library, f"emulate_{kernel}")
        run.argtypes = [
            ctypes.c_longlong,
            ctypes.c_longlong,
            ctypes.c_uint,
            ctypes.c_size_t,
            ctypes.c_int,
            type(pointers),
        ]
        run.restype = ctypes.c_char_p
        if fault := run(first, count, threads, shared_bytes, self.order, pointers):
            raise RuntimeError(f"{kernel}: {fault.decode()}")


class LastBlocks(EmulatedModule):
    """Runs the last blocks of a launch alone, on the tensors themselves: for images that no memory could hold."""

    def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: Tensor | int | None) -> None:
        count = min(blocks, 4)
        self.run(kernel, blocks - count, count, threads, shared_bytes, list(args))


def _value(argument: "Guarded | Tensor | int | None"):
    if isinstance(argument, int):
        return ctypes.c_int(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


class Guarded:
    """A copy of a tensor's memory between two bands of bytes that are NaN in every dtype."""

    def __init__(self, tensor: Tensor):
        assert tensor.is_contiguous()
        self.tensor = tensor
        size = tensor.numel() * tensor.element_size()
        misalignment = tensor.data_ptr() % 64
        self.memory = torch.full((64 + misalignment + size + 2 * GUARD_BYTES,), 0xFF, dtype=torch.uint8)
        start = -self.memory.data_ptr() % 64 + misalignment + GUARD_BYTES
        self.inside = self.memory[start : start + size]
        self.inside.copy_(tensor.detach().view(-1).view(torch.uint8))
        self.bands = (self.memory[:start], self.memory[start + size :])

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def put_back(self, kernel: str) -> None:
        if any((band != 0xFF).any() for band in self.bands):
            raise RuntimeError(f"{kernel} writes outside of a tensor {list(self.tensor.shape)}")
        self.tensor.data.view(-1).view(torch.uint8).copy_(self.inside)  # .data: unseen by autograd, as on a GPU
