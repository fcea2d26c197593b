"""CUDA kernels for one instantiation each: compiled by NVRTC (through CuPy), kept on disk, loaded once for a device.

Importing this imports no CuPy. Compiling needs no GPU and no driver, so that CI compiles what a GPU will load.
"""

import functools
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KERNELS = Path(__file__).parent / "kernels"


@dataclass(frozen=True)
class Instance:
    """A source file of `kernels/` and the constants that it is compiled for."""

    source: str
    constants: tuple[tuple[str, str | int], ...]

    @property
    def options(self) -> list[str]:
        return [f"-D{name}={value}" for name, value in self.constants]


def compile_instance(instance: Instance, architecture: str, *options: str) -> tuple[bytes, str]:
    """Machine code (cubin) for e.g. "sm_90", and the compiler's log.

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
        nvrtc.compileProgram(program, (f"-arch={architecture}", "--std=c++17", *instance.options, *options))
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as e:
        raise RuntimeError(f"{instance.source} does not compile:\n{nvrtc.getProgramLog(program)}") from e
    finally:
        nvrtc.destroyProgram(program)


def cache_folder() -> Path:
    """Where compiled kernels are kept: `dlgsanet/kernels` in the user's cache folder ($XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlgsanet" / "kernels"


def cached_cubin(instance: Instance, architecture: str) -> bytes:
    """`compile_instance`, or what it gave earlier for the same sources, constants, architecture and compiler."""
    from cupy.cuda import nvrtc

    sources = [path.read_bytes() for path in sorted(KERNELS.iterdir()) if path.suffix in (".cu", ".h")]
    key = repr((instance, architecture, nvrtc.getVersion(), sources))
    kept = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        cubin, _ = compile_instance(instance, architecture)
        _keep(cubin, kept)
        return cubin


def _keep(cubin: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(cubin)
        os.replace(file.name, path)
    except OSError:
        pass  # a cache that cannot be written only costs time


class Module:
    """The kernels of an instance on a device."""

    def __init__(self, instance: Instance, device: torch.device):
        from cupy.cuda import function

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a kernel would be loaded while a CUDA graph is captured; run the network once before capturing"
            )
        major, minor = capability(device)
        self.device = device
        self._module = function.Module()
        with torch.cuda.device(device):
            self._module.load(cached_cubin(instance, f"sm_{major}{minor}"))
        self._functions: dict[str, object] = {}

    def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: Tensor | int | None) -> None:
        """Start `kernel` on the device's current stream; integers are the kernel's `int`s, None a null pointer."""
        with torch.cuda.device(self.device):
            function = self._function(kernel, shared_bytes)
            values = [_argument(a) for a in args]
            function((blocks,), (threads,), values, shared_bytes, _Stream(self.device))

    def _function(self, kernel: str, shared_bytes: int):
        from cupy.cuda import driver, runtime

        function = self._functions.get(kernel)
        if function is None:
            # Makes the device's context the thread's, which the driver's calls want: autograd's threads may have none.
            runtime.setDevice(self.device.index)
            function = self._functions[kernel] = self._module.get_function(kernel)
            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, attribute, shared_bytes)
        return function


class _Stream:
    """PyTorch's current stream, as CuPy's launcher takes it."""

    def __init__(self, device: torch.device):
        self.ptr = torch.cuda.current_stream(device).cuda_stream


def _argument(value: Tensor | int | None) -> np.generic:
    if isinstance(value, Tensor):
        return np.uint64(value.data_ptr())
    return np.uint64(0) if value is None else np.int32(value)


@functools.cache
def load(instance: Instance, device: torch.device) -> Module:
    return Module(instance, device)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability, e.g. (9, 0)."""
    return torch.cuda.get_device_capability(device)


@functools.cache
def shared_memory_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    from cupy.cuda import runtime

    return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index)
