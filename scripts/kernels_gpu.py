"""Compile the CUDA kernels and print what they take of a GPU, without one.

python scripts/kernels_gpu.py                                 Tiny, float32, for sm_80, sm_90 and sm_120
python scripts/kernels_gpu.py --size Large --dtype bfloat16 --architectures sm_86
python scripts/kernels_gpu.py --host                          the host's work for a call, without a driver

Registers and spilled bytes are those of the compiler. Warps per multiprocessor follow from them, from the threads and
from the shared memory of a block (CUDA's occupancy rules). Waves: blocks of the launch, divided by those that all
multiprocessors of a card hold at once.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from torch import Tensor

from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.sizes import SIZES, size_options
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.commands import arguments
from dlgsanet.ops import dispatch
from dlgsanet.ops import tf32 as tf32_settings
from dlgsanet.ops.backends import choice, cuda, gradients, verdicts
from dlgsanet.ops.backends.cuda import channel_attention, dynamic_conv, feed_forward, first_use, local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.modules import Instance
from dlgsanet.ops.records import FusedDynamicConv, tensors_of


class Card(NamedTuple):
    """Figures of a card and of its multiprocessors, from the CUDA programming guide and the data sheets."""

    shared: int  # KB of shared memory of a multiprocessor; a block has at most one less
    warps: int  # that a multiprocessor holds
    blocks: int
    multiprocessors: int
    gigahertz: float  # under load
    terabytes: float  # a second, of its memory
    product: int  # clocks of a scheduler for 1024 multiply-adds of TF32; 0: it has none


CARDS = {
    "sm_75": Card(64, 32, 16, 68, 1.55, 0.61, 0),  # RTX 2080 Ti
    "sm_80": Card(164, 64, 32, 108, 1.41, 1.55, 8),  # A100
    "sm_86": Card(100, 48, 16, 82, 1.70, 0.93, 32),  # RTX 3090
    "sm_89": Card(100, 48, 24, 128, 2.52, 1.00, 32),  # RTX 4090
    "sm_90": Card(228, 64, 32, 132, 1.75, 3.00, 4),  # H100
    "sm_120": Card(100, 48, 24, 170, 2.41, 1.79, 32),  # RTX 5090
}
REGISTERS = 64 << 10  # of a multiprocessor, given to warps in units of 256
COMPILED = re.compile(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S)


def require(*packages: str) -> None:
    """End the program, with one line, if packages are not installed."""
    if names := [name for name in packages if importlib.util.find_spec(name) is None]:
        print(f"this needs {' and '.join(names)}, not installed for {sys.executable}", file=sys.stderr)
        sys.exit(2)


class Recorded(NamedTuple):
    instance: Instance
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int


def call(
    size: str, dtype: torch.dtype, batch: int, height: int, width: int, device: str
) -> tuple[Tensor, FusedDynamicConv]:
    """x and the dynamic convolution of a layer of a network."""
    options = size_options(size, 2)
    channels, groups, window, features = options["dim"], options["dim"] // 6, 7, options["dim"] // 4
    x, z = (torch.zeros(batch, c, height, width, dtype=dtype, device=device) for c in (channels, features))
    weight = torch.zeros(groups * window**2, features, device=device)
    return x, FusedDynamicConv(z, weight, weight[:, 0].contiguous(), window)


def launches(size: str, dtype: torch.dtype, architecture: str, batch: int, height: int, width: int) -> list[Recorded]:
    """Every launch of a network's dynamic convolution, in both passes with and without tensor cores, and of layers."""
    found: list[Recorded] = []

    class Recorder:
        def __init__(self, instance: Instance, device: torch.device):
            self.instance = instance

        def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: object) -> None:
            found.append(Recorded(self.instance, kernel, blocks, threads, shared_bytes))

    x, convolution = call(size, dtype, batch, height, width, "meta")
    layers = {
        feed_forward: GDFN(x.shape[1]),
        channel_attention: SparseGSA(x.shape[1], tlc_kernel=48).eval(),
        local_attention: MHDLSA(x.shape[1]),
    }
    cuda.forget_plans()
    with (
        mock.patch.object(cuda_modules, "load", Recorder),
        mock.patch.object(cuda_modules, "shared_memory_limit", return_value=CARDS[architecture].shared - 1 << 10),
        mock.patch.object(cuda_modules, "capability", return_value=divmod(int(architecture[3:]), 10)),
        mock.patch.object(cuda_modules, "multiprocessors", return_value=CARDS[architecture].multiprocessors),
        mock.patch.object(first_use, "refused", return_value=None),
        mock.patch.object(tf32_settings, "allowed_in_convolutions", return_value=True),
        mock.patch.object(choice, "is_faster", lambda which, pixels, run, other: (other(), run())),
    ):
        cuda.BACKEND.convolve(convolution, x)
        cuda.BACKEND.convolve_backward(convolution, x, x)
        for path in (cuda.FORWARD_EXACT, cuda.BACKWARD_EXACT):
            if not cuda.no_tensor_cores(path, dtype, x.device):
                cuda.PATHS[path](convolution, x, x)
        for kernels, layer in layers.items():
            record = layer.to(device="meta", dtype=dtype).record()
            for path in cuda.OF_LAYERS:
                if path.startswith(kernels.EXACT) and not cuda.no_tensor_cores(path, dtype, x.device, x.shape[1]):
                    cuda.PATHS[path](record, x, x)
    cuda.forget_plans()
    return list(dict.fromkeys(found))


def warps(threads: int, shared_bytes: int, registers: int, card: Card) -> int:
    """Most warps of a kernel that a multiprocessor holds; threads, shared_bytes: of a block."""
    of_block = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // of_block
    by_shared = (card.shared << 10) // (shared_bytes + 1024)
    return of_block * min(by_registers, by_shared, card.warps // of_block, card.blocks)


class _Loaded:
    """A module whose kernels do nothing."""

    ptr = 0

    def load(self, cubin: bytes) -> None: ...

    def get_function(self, name: str) -> "_Loaded":
        return self


@contextlib.contextmanager
def idle_driver() -> Iterator[None]:
    """The CUDA backend serves calls on the CPU: everything is done but compiling, and what the driver would do."""
    from cupy.cuda import driver, function, runtime

    on_cpu = dataclasses.replace(cuda.BACKEND, unsuited=cast("Any", cuda.refused_kernels))
    agrees = verdicts.Verdict(None, 0.0, 0.0)
    caches = (dynamic_conv.plan, cuda_modules.load, first_use._verdict)
    for cache in caches:
        cache.cache_clear()
    with (
        mock.patch.object(function, "Module", _Loaded),
        mock.patch.object(driver, "launchKernel", _always(None)),
        mock.patch.object(driver, "funcSetAttribute", _always(None)),
        mock.patch.object(runtime, "getDevice", _always(None)),
        mock.patch.object(runtime, "setDevice", _always(None)),
        mock.patch.object(torch.cuda, "device", contextlib.nullcontext),
        mock.patch.object(torch.cuda, "current_device", _always(None)),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", _always(0), create=True),
        mock.patch.object(cuda_modules, "require_no_capture", _always(None)),
        mock.patch.object(cuda_modules, "cached_cubin", _always(b"")),
        mock.patch.object(cuda_modules, "shared_memory_limit", _always(CARDS["sm_90"].shared - 1 << 10)),
        mock.patch.object(cuda_modules, "capability", _always((9, 0))),
        mock.patch.object(first_use, "examine", _always(agrees)),
        mock.patch.object(dispatch, "BACKENDS", {"cuda": ""}),
        mock.patch.object(dispatch, "load", _always(on_cpu)),
    ):
        yield
    for cache in caches:
        cache.cache_clear()


def _always(result: Any) -> Callable[..., Any]:
    """A function that returns the same for all arguments; mocks would take time."""
    return lambda *arguments: result


def host_work(size: str, dtype: torch.dtype) -> dict[str, tuple[int, float]]:
    """Functions called (counted) and microseconds of the CPU (measured) for a call, by pass."""
    x, convolution = call(size, dtype, 1, 8, 8, "cpu")
    tensors = [x, *tensors_of(convolution)]
    for tensor in tensors:
        tensor.requires_grad_()
    grad = torch.zeros_like(x)

    def forward() -> Tensor:
        return gradients.convolve(None, convolution, x)

    def backward() -> None:
        torch.autograd.grad(result, tensors, grad, retain_graph=True)

    with idle_driver():
        result = forward()
        return {run.__name__: (_calls(run), _microseconds(run)) for run in (forward, backward)}


def _calls(function: Callable[[], Any]) -> int:
    for _ in range(5):  # until checks of types are cached
        function()
    events: list[str] = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(None)
    return sum("call" in event for event in events)


def _microseconds(function: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(10):
        started = time.process_time()
        for _ in range(100):
            function()
        best = min(best, (time.process_time() - started) * 1e4)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="Tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"], default="float32")
    parser.add_argument("--batch", type=arguments.whole_number(), default=16)
    arguments.add_size(parser, "--image", (64, 64), "of the convolution's input")
    parser.add_argument("--architectures", nargs="+", choices=list(CARDS), default=["sm_80", "sm_90", "sm_120"])
    parser.add_argument("--host", action="store_true", help="print the host's work for a call instead")
    args = parser.parse_args()
    require("cupy")
    if args.host:
        for name, (calls, microseconds) in host_work(args.size, getattr(torch, args.dtype)).items():
            print(f"{name}: {calls} functions called, {microseconds:.0f} us")
        return 0
    width, height = args.image
    print("| | kernel | registers | spilled bytes | KB shared | warps | blocks | waves |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in args.architectures:
        card, used = CARDS[architecture], {}
        for launch in launches(args.size, getattr(torch, args.dtype), architecture, args.batch, height, width):
            if launch.instance not in used:
                _, log = cuda_modules.compile_instance(launch.instance, architecture, "--ptxas-options=-v")
                used[launch.instance] = {name: (int(r), int(s)) for name, s, r in COMPILED.findall(log)}
            registers, spilled = used[launch.instance][launch.kernel]
            kernel = launch.kernel + ", exact" * (("EXACT", 1) in launch.instance.constants)
            held = warps(launch.threads, launch.shared_bytes, registers, card)
            at_once = held * 32 // launch.threads * card.multiprocessors
            print(
                f"| {architecture} | {kernel} | {registers} | {spilled} | {launch.shared_bytes / 1024:.0f} | "
                f"{held} | {launch.blocks} | {launch.blocks / at_once:.1f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
