"""CUDA kernels, compiled by NVRTC (through CuPy) for the constants of a call, kept on disk, loaded once per device.

Importing this module does not import CuPy. Compiling needs no GPU and no driver, so CI compiles what a GPU will load.
"""

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops.backends.verdicts import keep, kept_path

KERNELS = Path(__file__).parent / "kernels"
LANGUAGE = "--std=c++17"
SCALARS = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "BFloat16"}
SHARED_BYTES_UNASKED = 48 << 10  # every block may have this many; more must be requested from the driver


@dataclass(frozen=True)
class Instance:
    """A source file (in `kernels/`, or an absolute path) and the constants that it is compiled with."""

    source: str
    constants: tuple[tuple[str, str | int], ...]

    @property
    def options(self) -> list[str]:
        return [f"-D{name}={value}" for name, value in self.constants]

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels in the source."""
        pattern = r'extern "C" __global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\('
        return re.findall(pattern, (KERNELS / self.source).read_text())


def compile_instance(instance: Instance, architecture: str, *options: str) -> tuple[bytes, str]:
    """Machine code (cubin) for an architecture such as "sm_90", and the compiler's log.

    Raises:
        RuntimeError: the source does not compile; the message is the log.
    """
    from cupy.cuda import nvrtc

    headers = sorted(KERNELS.glob("*.h"))
    program = nvrtc.createProgram(
        (KERNELS / instance.source).read_text(),
        instance.source,
        [header.read_bytes() for header in headers],
        [header.name.encode() for header in headers],
    )
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", LANGUAGE, *instance.options, *options))
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as e:
        raise RuntimeError(f"{instance.source} does not compile:\n{nvrtc.getProgramLog(program)}") from e
    finally:
        nvrtc.destroyProgram(program)


def cached_cubin(instance: Instance, architecture: str, again: bool = False) -> bytes:
    """The cubin of `compile_instance`, from disk if the sources, constants, architecture and compiler are the same.

    again: compile it in any case.
    """
    kept = kept_path(".cubin", sources(), instance, architecture, compiler_version(), LANGUAGE)
    if not again:
        with contextlib.suppress(OSError):
            return kept.read_bytes()
    cubin, _ = compile_instance(instance, architecture)
    keep(cubin, kept)
    return cubin


@functools.cache
def compiler_version() -> tuple[int, int] | None:
    """The version of NVRTC, or None without CuPy."""
    try:
        from cupy.cuda import nvrtc
    except ImportError:
        return None
    return nvrtc.getVersion()


def sources() -> list[Path]:
    """The kernels' source files."""
    return sorted(KERNELS.glob("*.*"))


def require_no_capture() -> None:
    """Raise a RuntimeError while a CUDA graph is captured."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a kernel cannot be loaded while a CUDA graph is captured; run the network once before capturing"
        )


class Module:
    """The kernels of an instance, loaded on a device."""

    def __init__(self, instance: Instance, device: torch.device):
        from cupy.cuda import driver, function, runtime

        self._driver, self._runtime, self.device = driver, runtime, device
        with _current(device):
            require_no_capture()
            module, architecture = function.Module(), "sm_{}{}".format(*capability(device))
            try:
                module.load(cached_cubin(instance, architecture))
            except RuntimeError:  # the file may be damaged
                module.load(cached_cubin(instance, architecture, again=True))
            # All of them now: otherwise the driver may load a kernel at its first use, which could be in a capture.
            self._functions = {name: module.get_function(name) for name in instance.kernels}
        self._allowed = dict.fromkeys(self._functions, SHARED_BYTES_UNASKED)  # bytes of shared memory of a block

    def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: Tensor | int | None) -> None:
        """Start `kernel` on the device's current stream; integers are passed as `int`, None as a null pointer."""
        with contextlib.nullcontext() if torch.cuda.current_device() == self.device.index else _current(self.device):
            before = self._runtime.getDevice()
            self._runtime.setDevice(self.device.index)  # autograd's threads may have no context yet
            try:
                self._start(kernel, blocks, threads, shared_bytes, args)
            finally:
                if before != self.device.index:
                    self._runtime.setDevice(before)

    def _start(
        self, kernel: str, blocks: int, threads: int, shared_bytes: int, args: tuple[Tensor | int | None, ...]
    ) -> None:
        function = self._functions[kernel]
        if shared_bytes > self._allowed[kernel]:
            attribute = self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._driver.funcSetAttribute(function.ptr, attribute, shared_bytes)
            self._allowed[kernel] = shared_bytes
        # The driver takes an array of addresses, one for each argument. Of 8 bytes it reads the first 4 as an `int`.
        slots = _slots(len(args))
        values = slots(*[0 if a is None else a if isinstance(a, int) else a.data_ptr() for a in args])
        first = ctypes.addressof(values)
        addresses = slots(*range(first, first + 8 * len(args), 8))
        stream = torch._C._cuda_getCurrentRawStream(self.device.index)
        self._driver.launchKernel(
            function.ptr, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, ctypes.addressof(addresses), 0
        )


class Launch(NamedTuple):
    """A launch of a kernel, apart from its tensors. `sizes` are the arguments after them."""

    module: Module
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    sizes: tuple[int, ...]

    def __call__(self, *tensors: Tensor | None) -> None:
        self.module.launch(self.kernel, self.blocks, self.threads, self.shared_bytes, *tensors, *self.sizes)


@functools.cache
def _slots(count: int) -> Any:
    return ctypes.c_uint64 * count


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Make a device current in PyTorch and CuPy, and make its context the current one of this thread.

    Calls of the driver need a context. Autograd's threads may have none, and CuPy could choose that of another device.
    """
    from cupy.cuda import runtime

    with torch.cuda.device(device):
        before = runtime.getDevice()
        runtime.setDevice(device.index)
        try:
            yield
        finally:
            runtime.setDevice(before)


@functools.cache
def load(instance: Instance, device: torch.device) -> Module:
    return Module(instance, device)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability, for example (9, 0)."""
    return torch.cuda.get_device_capability(device)


@functools.cache
def shared_memory_limit(device: torch.device) -> int:
    """The most bytes of shared memory that a block can have."""
    from cupy.cuda import runtime

    return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count
