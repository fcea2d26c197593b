"""Predict what each kernel of a network takes on a GPU, without one; on a machine with a GPU also measure it.

python scripts/predict_gpu.py inference                      Tiny x4, 320x180, float32, for sm_80, sm_90 and sm_120
python scripts/predict_gpu.py training --batch 16 --image 64x64 --scale 2 --tf32
python scripts/predict_gpu.py inference --size Large --dtype bfloat16 --architectures sm_90
python scripts/predict_gpu.py convolution --published        the dynamic convolution alone; convolution-backward

The network or convolution runs on PyTorch's meta device. Every kernel that it would start is compiled, and its machine
code is read:

  registers, spilled    of a thread; bytes
  KB, warps             shared memory of a block; warps that a multiprocessor holds (CUDA's occupancy rules)
  loop                  instructions of the main loop, or of the whole kernel if most of its arithmetic is in no loop
  fma, mma, sh, gl      per cent of these: multiply-adds, matrix products, accesses to shared and to global memory
  MB                    tensors that the kernel reads and writes, each once
  issue, smem, dram     microseconds if this alone limited the kernel: an instruction per clock and scheduler; 128
                        bytes of shared memory per clock and multiprocessor, without bank conflicts; the MB at the
                        bandwidth of the card's memory
  predicted             twice the largest of the three, at least 2 us; kernels that were measured on an H200 took 0.6 to
                        1.2 times this (docs/benchmarks/gpu.md)
  measured              median microseconds on the GPU of this machine, if its architecture is the row's; the last
                        line then has the sum of all kernels

Instructions outside of the main loop count once, or as often as a loop around it makes rounds. Where blocks compute one
tile after another, those of the block that has most to do count. Where two ways are timed on a card
(dlgsanet/ops/backends/choice.py), the network takes the one with the smaller prediction; the kernels of the other have
0 calls. PyTorch's own operators are predicted from their bytes, and from their multiply-adds at 70% of the card's rate;
products in TF32 and in 16 bits at half of the rate of matrix products. DLGSANET_BACKEND=composed predicts the plain
definition.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import benchmark_gpu
import count_gpu
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dlgsanet import ops
from dlgsanet.archs import replays
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sizes import SCALES, SIZES, size_options
from dlgsanet.commands import arguments
from dlgsanet.ops import dispatch
from dlgsanet.ops import tf32 as tf32_settings
from dlgsanet.ops.backends import choice, cuda
from dlgsanet.ops.backends import triton as triton_backend
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.modules import Instance
from dlgsanet.ops.backends.torch import strip_rows


def require(*packages: str) -> None:
    """End the program, with one line, if packages are not installed."""
    if names := [name for name in packages if importlib.util.find_spec(name) is None]:
        print(f"this needs {' and '.join(names)}, not installed for {sys.executable}", file=sys.stderr)
        sys.exit(2)


try:
    import triton
    from triton import runtime
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from dlgsanet.ops.backends.triton import steps
    from dlgsanet.ops.backends.triton import training as triton_training
except ModuleNotFoundError:
    require("cupy", "triton")
    raise

WARP = 32
LONGER = 2.0  # times the largest limit
LEAST = 2e-6  # seconds of a kernel
FREE_MEMORY = 80 << 30
RATE = 0.7  # of multiply-adds that libraries reach
DEPTHWISE = 4.4  # times the limit of its bytes: PyTorch's depth-wise convolution (75.5 MB in 112 us on an H100)
PRODUCT_RATE = 0.5  # of matrix products that libraries reach

KINDS = {
    "fma": ("FFMA", "FFMA2", "DFMA", "HFMA2"),
    "mma": ("HMMA", "DMMA", "HGMMA"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "global": ("LDG", "STG", "LDGSTS", "LD", "ST"),
}
KIND = {name: kind for kind, names in KINDS.items() for name in names}


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


class Instructions(NamedTuple):
    """Numbers of instructions of a piece of machine code."""

    all: int
    kinds: Counter[str]
    wavefronts: int  # 128 bytes each, of accesses to shared memory without bank conflicts
    product_clocks: float  # of products, in those of 1024 multiply-adds


class Code(NamedTuple):
    """The machine code of a kernel."""

    registers: int
    spilled: int
    outside: Instructions  # of the main loop
    loop: Instructions


@functools.cache
def tool(name: str) -> str:
    """A program of NVIDIA's that reads machine code: of Triton's wheel, or on the PATH."""
    bundled = Path(triton.__file__).with_name("backends") / "nvidia/bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name) or sys.exit(f"predict_gpu: error: no {name}")


@functools.cache
def read_code(cubin: bytes, kernel: str) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin + bytes(1024))  # NVRTC's lack the zeros at their end, which the tools need
        file.flush()
        usage, assembly = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in ([tool("cuobjdump"), "-res-usage"], [tool("nvdisasm"), "-c"])
        )
    used = re.search(rf"Function {kernel}:\s*REG:(\d+) STACK:(\d+)", usage)
    assert used, usage
    lines = assembly.split(f"\n.text.{kernel}:")[1].split("\n//----")[0].splitlines()
    loop = main_loop(lines, 0.3 if kernel == "local_attention" else 0.5)  # its second projection is outside
    outside = [line for i, line in enumerate(lines) if i not in loop]
    return Code(int(used[1]), int(used[2]), count(outside), count([lines[i] for i in loop]))


def main_loop(lines: list[str], share: float = 0.5) -> range:
    """The lines of the shortest loop with most of the arithmetic, or a share of it; none if there is no such loop."""
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if line.startswith(".L")}
    loops = []
    for i, line in enumerate(lines):
        target = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        start = labels.get(target[1], i) if target else i
        if i - start > 1:  # an endless loop of one instruction is at the end of the code
            loops.append(range(start, i + 1))
    most = [loop for loop in loops if arithmetic(lines[loop.start : loop.stop]) > share * arithmetic(lines)]
    return min(most, key=len, default=range(0))


def arithmetic(lines: list[str]) -> int:
    counted = count(lines)
    return counted.kinds["fma"] + 32 * counted.kinds["mma"]


def count(lines: list[str]) -> Instructions:
    names = [found[1] for line in lines if (found := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line))]
    names = [name for name in names if name not in ("NOP", "BRA")]
    kinds = Counter(KIND.get(name.split(".")[0], "other") for name in names)
    shared = [name for name in names if KIND.get(name.split(".")[0]) == "shared"]
    wavefronts = sum(
        4 if re.search(r"\.128|M88\.4", name) else 2 if re.search(r"\.64|M88\.2", name) else 1 for name in shared
    )
    return Instructions(len(names), kinds, wavefronts, sum(map(clocks_of_product, names)))


def clocks_of_product(name: str) -> float:
    """Clocks of a matrix product, where one of 1024 multiply-adds in TF32 takes 1."""
    if terms := re.match(r"HMMA\.168(\d+)", name):
        return int(terms[1]) / 8 * (1 if "TF32" in name else 0.5)
    if size := re.match(r"HGMMA\.64x(\d+)x(\d+)", name):  # of four warps
        return 16 * int(size[1]) * int(size[2]) / 1024 * (1 if "TF32" in name else 0.5)
    return 0


class Kernel(NamedTuple):
    """A compiled kernel and the sizes of a launch."""

    name: str
    cubin: bytes
    blocks: int
    threads: int
    shared_bytes: int
    trips: float  # of a warp through the main loop
    multiply_adds: int  # that all threads do one by one, for kernels whose trips follow from them; else 0
    bytes: int
    rounds: float = 1  # of a warp through what is outside of the main loop


class Prediction(NamedTuple):
    code: Code
    warps: int  # that a multiprocessor holds
    limits: tuple[float, float, float]  # seconds, by instructions, shared memory, memory

    @property
    def seconds(self) -> float:
        return max(LEAST, LONGER * max(self.limits))


# Constants whose product is the number of trips through the main loop.
TRIPS = {"gated_feed_forward": ("CHUNKS",), "attention_sums": ("CHUNKS",), "attention_values": ("VALUE_CHUNKS",)}
TRIPS["local_attention"] = ("ROUNDS",)
TRIPS["gated_feed_forward_backward"] = ("CHUNKS",)
TRIPS |= dict.fromkeys(("gate_project_backward", "products", "products_backward", "attend_backward"), ("ROUNDS",))
# Kernels whose main loop is within a loop.
NESTED = ("filter_project_backward", "project_backward", "squeeze_project_backward")
TRIPS |= dict.fromkeys(NESTED, ("ROUNDS", "PARTS"))


def on_all(blocks: int, card: Card) -> int:
    """As many blocks with most tiles as take as long on a whole card as these blocks, some of which may have fewer."""
    return -(-blocks // card.multiprocessors) * card.multiprocessors


def warps(threads: int, shared_bytes: int, registers: int, card: Card) -> int:
    """Most warps of a kernel that a multiprocessor holds; threads, shared_bytes: of a block."""
    of_block = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // of_block
    by_shared = (card.shared << 10) // (shared_bytes + 1024)
    return of_block * min(by_registers, by_shared, card.warps // of_block, card.blocks)


@functools.cache
def predict(kernel: Kernel, card: Card) -> Prediction:
    code = read_code(kernel.cubin, kernel.name)
    all_warps = kernel.blocks * -(-kernel.threads // WARP)
    trips = trips_of(kernel, code.loop, all_warps)
    instructions = kernel.rounds * code.outside.all + trips * code.loop.all
    wavefronts = kernel.rounds * code.outside.wavefronts + trips * code.loop.wavefronts
    products = card.product * (kernel.rounds * code.outside.product_clocks + trips * code.loop.product_clocks)
    clocks = all_warps / card.multiprocessors / (card.gigahertz * 1e9)
    limits = (
        max(instructions, products) * clocks / 4,
        wavefronts * clocks,
        kernel.bytes / (card.terabytes * 1e12),
    )
    return Prediction(code, warps(kernel.threads, kernel.shared_bytes, code.registers, card), limits)


def trips_of(kernel: Kernel, loop: Instructions, all_warps: int) -> float:
    """Of a warp through the main loop."""
    if kernel.multiply_adds and loop.kinds["fma"]:
        return kernel.multiply_adds / (WARP * loop.kinds["fma"] * all_warps)
    return kernel.trips if loop.all else 0


def counted_trips(name: str, constants: dict[str, Any], tensors: list[Tensor]) -> float:
    """Trips that do not follow from multiply-adds: from constants, or of `channel_sums` the mean of its tiles'."""
    if name == "channel_sums":
        with _disable_current_modes():  # these operations are not the network's
            rows = tensors[3][:, 1] - tensors[3][:, 0]
            return (rows / constants["ROWS"]).ceil().mean().item()
    return math.prod(int(constants.get(trips, 1)) for trips in TRIPS.get(name, ("PARTS",)))


class Start(NamedTuple):
    """The start of a kernel, or of an operator of PyTorch's."""

    name: str
    kernel: Kernel | None
    seconds: float  # predicted


class Recorder(TorchDispatchMode):
    """Records what a network starts on a card while it is active, and compiles it."""

    def __init__(self, architecture: str, measure: bool):
        super().__init__()
        self.architecture, self.card, self.measure = architecture, CARDS[architecture], measure
        self.starts: list[Start] = []
        self.measured: dict[Kernel, float] = {}  # milliseconds; the keys are all kernels that were considered

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if results and count_gpu.starts_work(func):
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)] + results
            flops = flop_registry.get(func.overloadpacket)
            multiply_adds = flops(*args, **kwargs, out_val=out) / 2 if flops else 0
            seconds = sum(map(count_gpu.bytes_of, tensors)) / self.card.terabytes / 1e12
            if func.overloadpacket is torch.ops.aten.convolution and args[-1] > 1:  # groups
                seconds *= DEPTHWISE
            seconds = max(LEAST, seconds, self.library(multiply_adds, results[0].dtype))
            self.starts.append(Start(func.overloadpacket.__name__, None, seconds))
        return out

    @property
    def seconds(self) -> float:
        return sum(start.seconds for start in self.starts)

    def library(self, multiply_adds: float, dtype: torch.dtype) -> float:
        """Seconds of a library for a product or convolution."""
        clock = self.card.multiprocessors * self.card.gigahertz * 1e9
        in_tf32 = dtype == torch.float32 and tf32_settings.allowed_in_matrix_products()
        if self.card.product and (in_tf32 or dtype.itemsize == 2):
            return multiply_adds / (4 * 1024 / self.card.product * clock) / PRODUCT_RATE / (1 if in_tf32 else 2)
        return multiply_adds / (128 * clock) / RATE

    def launched(self, kernel: Kernel, run: Callable[[], object]) -> None:
        if self.measure and kernel not in self.measured:
            self.measured[kernel] = choice.milliseconds(run, torch.device("cuda"))
        self.measured.setdefault(kernel, float("nan"))
        self.starts.append(Start(kernel.name, kernel, predict(kernel, self.card).seconds))

    def is_faster(self, which: Any, pixels: int, run: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
        """`choice.is_faster` by prediction."""
        before, seconds = len(self.starts), []
        for way in (run, other):
            way()
            seconds.append(sum(start.seconds for start in self.starts[before:]))
            del self.starts[before:]
        return seconds[0] <= seconds[1]


class Module:
    """A module of CUDA kernels whose launches are recorded."""

    def __init__(self, recorder: Recorder, instance: Instance, device: torch.device):
        self.recorder, self.instance = recorder, instance
        self.cubin = cuda_modules.compile_instance(instance, recorder.architecture)[0]
        self.real = cuda_modules.Module(instance, device) if recorder.measure else None

    def launch(self, name: str, blocks: int, threads: int, shared_bytes: int, *args: Any) -> None:
        tensors, constants = [a for a in args if isinstance(a, Tensor)], dict(self.instance.constants)
        trips, moved = counted_trips(name, constants, tensors), sum(map(count_gpu.bytes_of, tensors))
        counted, rounds = blocks, 1
        if name == "gated_feed_forward_backward":
            whole, units, _, share, _ = args[-5:]
            trips, rounds = whole // blocks * trips + (share if units > whole else 0), -(-units // blocks)
            counted = on_all(blocks, self.recorder.card)
        if name == "fused_forward_mma":
            trips = args[5]  # rounds of groups
        if name == "gated_feed_forward_finish":  # the last tiles of images, from blocks' shares of them
            moved = count_gpu.bytes_of(args[3]) + 3 * count_gpu.bytes_of(args[1]) * blocks // (args[-2] + blocks)
        kernel = Kernel(
            name, self.cubin, counted, threads, shared_bytes, trips, multiply_adds(name, constants, tensors), moved,
            rounds,
        )  # fmt: skip
        run = functools.partial(self.real.launch, name, blocks, threads, shared_bytes, *args) if self.real else _nothing
        self.recorder.launched(kernel, run)
        run()


def _nothing() -> None:
    pass


def multiply_adds(name: str, constants: dict[str, Any], tensors: list[Tensor]) -> int:
    """Of the dynamic convolution's kernels, one by one; each computes as many. 0: of other kernels."""
    if not name.startswith(("plain", "fused")) or name == "fused_forward_mma":
        return 0
    x = max((t for t in tensors if t.dim() == 4), key=lambda t: t.shape[1])
    window, channels = int(constants["WINDOW"]), x.shape[1]
    of_filters = channels // int(constants["CHANNELS"]) * int(constants.get("FEATURES", 0))
    return x[:, 0].numel() * window**2 * (channels + (0 if name.endswith("mma") else of_filters))


def multiply_adds_in_triton(name: str, constants: dict[str, Any], programs: int) -> int:
    """Of the kernel for local attention, one by one; 0: of other kernels."""
    if name != "attend_locally":
        return 0
    groups = constants["PASSES"] * constants["GROUPS"]
    of_pixel = groups * constants["SHARE"] * constants["K"] ** 2
    if constants["FORMED"] == "ieee":  # filters too
        of_pixel += groups * constants["TAPS"] * constants["TERMS"]
    return programs * 2 * constants["PIXELS"] * of_pixel


class Driver:
    """Of Triton's runtime: kernels are compiled for an architecture, and not started."""

    def __init__(self, architecture: str):
        self.architecture = architecture

    def get_current_device(self) -> str:
        return self.architecture  # compiled kernels are kept by this

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(self.architecture[3:]), WARP)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Within the block, a network's kernels are recorded; on the meta device, those of its architecture are chosen."""
    run, architecture = JITFunction.run, recorder.architecture

    def launch(function: Any, *args: Any, grid: tuple[int], warmup: bool, **constants: Any) -> Any:
        compiled = run(function, *args, grid=grid, warmup=True, **constants)
        tensors = [a for a in args if isinstance(a, Tensor)]
        metadata, name = compiled.metadata, function.__name__
        programs = on_all(grid[0], recorder.card) if name in NESTED else grid[0]
        kernel = Kernel(
            name, compiled.asm["cubin"], programs, metadata.num_warps * WARP, metadata.shared,
            counted_trips(name, constants, tensors), multiply_adds_in_triton(name, constants, grid[0]),
            sum(map(count_gpu.bytes_of, tensors)), constants["ROUNDS"] if name in NESTED else 1,
        )  # fmt: skip
        start = functools.partial(run, function, *args, grid=grid, warmup=False, **constants)
        start = start if recorder.measure else _nothing
        recorder.launched(kernel, start)
        start()
        return compiled

    loaded = functools.cache(lambda instance, device: Module(recorder, instance, device))
    patches = [mock.patch.object(cuda_modules, "load", loaded), mock.patch.object(JITFunction, "run", launch)]
    patches.append(mock.patch.object(replays, "LARGEST", 0))  # a replay would start nothing that is recorded
    if not recorder.measure:
        tiles_of = steps.tiles_of
        on_meta = dataclasses.replace(
            cuda.BACKEND,
            unsuited=lambda record, x, training: cuda.no_layer(record, x) or cuda.refused_kernels(record, x, training),
        )
        load = dispatch.load
        patches += [
            mock.patch.object(runtime.driver, "_active", Driver(architecture)),
            mock.patch.object(cuda_modules, "shared_memory_limit", return_value=(CARDS[architecture].shared - 1) << 10),
            mock.patch.object(cuda_modules, "capability", return_value=divmod(int(architecture[3:]), 10)),
            mock.patch.object(cuda_modules, "multiprocessors", return_value=CARDS[architecture].multiprocessors),
            mock.patch.object(first_use, "refused", return_value=None),
            mock.patch.object(triton_backend, "refused", return_value=None),
            mock.patch.object(triton_backend, "refused_sizes", return_value=None),
            mock.patch.object(triton_backend, "DEVICES", ("meta",)),
            mock.patch.object(steps, "_on", return_value=contextlib.nullcontext()),
            mock.patch.object(steps, "_has_tf32", return_value=True),
            mock.patch.object(triton_training, "_multiprocessors", return_value=CARDS[architecture].multiprocessors),
            mock.patch.object(steps, "tiles_of", lambda *sizes: tiles_of(*sizes[:-1], torch.device("cpu"))),
            mock.patch.object(choice, "is_faster", recorder.is_faster),
            mock.patch.object(dispatch, "load", lambda name: on_meta if name == "cuda" else load(name)),
            mock.patch.object(strip_rows, "free_memory", return_value=FREE_MEMORY),
        ]
    cuda.forget_plans()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
    cuda.forget_plans()


def record(
    what: str, size: str, scale: int, dtype: torch.dtype, batch: int, image: tuple[int, int], architecture: str,
    device: str,
    way: str = benchmark_gpu.OURS,
) -> Recorder:  # fmt: skip
    """What is started by `what`, one of `WORK`; way: of `benchmark_gpu.served`."""
    width, height = image
    recorder = Recorder(architecture, measure=device != "meta")
    with benchmark_gpu.served(way), contextlib.ExitStack() as stack:
        with torch.device(device):
            work = WORK[what](size, scale, dtype, (batch, height, width), way)
        if recorder.measure:
            work()()  # kernels are tried, and ways are timed, without what recording adds to their time
        stack.enter_context(recording(recorder))
        for _ in range(2):  # what is planned once per shape is not recorded
            run = work()
            recorder.starts.clear()
            with recorder:
                run()
    return recorder


Run = Callable[[], object]
Shape = tuple[int, int, int]  # images, their height and width


def inference(size: str, scale: int, dtype: torch.dtype, shape: Shape, way: str) -> Callable[[], Run]:
    network, x = network_and_images(size, scale, dtype, shape)
    ops.freeze(network.eval())
    return lambda: functools.partial(torch.no_grad()(network), x)


def training(size: str, scale: int, dtype: torch.dtype, shape: Shape, way: str) -> Callable[[], Run]:
    network, x = network_and_images(size, scale, dtype, shape)

    def work() -> Run:
        network.zero_grad()
        return lambda: network(x).abs().mean().backward()

    return work


def network_and_images(size: str, scale: int, dtype: torch.dtype, shape: Shape) -> tuple[DLGSANet, Tensor]:
    batch, *sides = shape
    return DLGSANet(**size_options(size, scale)).to(dtype), torch.zeros(batch, 3, *sides, dtype=dtype)


def convolution(size: str, scale: int, dtype: torch.dtype, shape: Shape, way: str) -> Callable[[], Run]:
    layer, inputs = layer_and_inputs(size, dtype, shape, way)
    return lambda: functools.partial(torch.no_grad()(layer), *inputs)


def convolution_backward(size: str, scale: int, dtype: torch.dtype, shape: Shape, way: str) -> Callable[[], Run]:
    layer, inputs = layer_and_inputs(size, dtype, shape, way)
    grad = torch.zeros_like(inputs[0])

    def work() -> Run:
        out = layer(*inputs)
        return lambda: torch.autograd.grad(out, inputs, grad)

    return work


def layer_and_inputs(size: str, dtype: torch.dtype, shape: Shape, way: str) -> tuple[Callable, tuple[Tensor, ...]]:
    """The dynamic convolution as `benchmark_gpu.py tiny` and `large` measure it."""
    _, *sizes = benchmark_gpu.LAYERS["large" if size == "Large" else "tiny"]
    layer = benchmark_gpu.published if way == benchmark_gpu.PUBLISHED else benchmark_gpu.fused
    return layer, benchmark_gpu.layer_inputs(shape, dtype, *sizes)


# What makes the work to predict: each call prepares it, without being recorded, and returns it.
WORK = {
    "inference": inference,
    "training": training,
    "convolution": convolution,
    "convolution-backward": convolution_backward,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(WORK))
    parser.add_argument("--size", choices=list(SIZES), default="Tiny")
    parser.add_argument("--scale", type=int, choices=SCALES, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in matrix products and convolutions")
    parser.add_argument("--batch", type=arguments.whole_number(), default=1)
    arguments.add_size(parser, "--image", (320, 180), "of the LR image")
    parser.add_argument("--published", action="store_true", help="compare with PyTorch and the published kernel")
    parser.add_argument("--architectures", nargs="+", choices=list(CARDS), default=["sm_80", "sm_90", "sm_120"])
    args = parser.parse_args()
    require("cupy")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    here = "sm_{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None
    for architecture in args.architectures:
        recorded = functools.partial(
            record, args.what, args.size, args.scale, getattr(torch, args.dtype), args.batch, args.image, architecture,
            "cuda" if architecture == here else "meta",
        )  # fmt: skip
        recorder = recorded()
        print_table(recorder)
        if args.published:
            published = recorded(benchmark_gpu.PUBLISHED)
            print(f"as published: {summary(published)}; {published.seconds / recorder.seconds:.1f} times as long")
    return 0


def print_table(recorder: Recorder) -> None:
    print(
        f"\n{recorder.architecture}:\n\n"
        "| kernel | calls | registers | spilled | KB | warps | loop | fma | mma | sh | gl | MB | issue | smem | dram | "
        "predicted us | measured us |\n|" + "---|" * 17
    )
    calls = Counter(start.kernel for start in recorder.starts)
    for kernel, measured in recorder.measured.items():
        found = predict(kernel, recorder.card)
        loop = found.code.loop if found.code.loop.all else found.code.outside
        shares = " | ".join(f"{100 * loop.kinds[kind] / loop.all:.0f}" for kind in KINDS)
        limits = " | ".join(f"{seconds * 1e6:.1f}" for seconds in found.limits)
        print(
            f"| {kernel.name} | {calls[kernel]} | {found.code.registers} | {found.code.spilled} | "
            f"{kernel.shared_bytes / 1024:.0f} | {found.warps} | {loop.all} | {shares} | {kernel.bytes / 1e6:.1f} | "
            f"{limits} | {found.seconds * 1e6:.0f} | {'' if measured != measured else f'{measured * 1e3:.0f}'} |"
        )
    others = Counter(start.name for start in recorder.starts if not start.kernel)
    seconds = {name: sum(s.seconds for s in recorder.starts if s.name == name) for name in others}
    for name, times in others.most_common():
        print(f"| PyTorch's {name} | {times} |" + " |" * 13 + f" {seconds[name] / times * 1e6:.0f} | |")
    print(f"\n{summary(recorder)}")


def summary(recorder: Recorder) -> str:
    text = f"{len(recorder.starts)} starts, predicted {recorder.seconds * 1e3:.2f} ms"
    if not recorder.measure:
        return text
    kernels = [(start.seconds * 1e3, recorder.measured[start.kernel]) for start in recorder.starts if start.kernel]
    predicted, measured = map(sum, zip(*kernels, strict=True))
    return f"{text}; {len(kernels)} kernels predicted {predicted:.2f} ms, measured {measured:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
