"""Time and memory of the dynamic convolution and of whole networks on an NVIDIA GPU, next to other implementations.

python scripts/benchmark_gpu.py tiny               the layer that Tiny and Light share, in every way
python scripts/benchmark_gpu.py large              the layer of Large
python scripts/benchmark_gpu.py feed-forward       the gated feed-forward layer without gradients, in every way
python scripts/benchmark_gpu.py inference          the nine published networks, SwinIR-light and EDSR: a picture
python scripts/benchmark_gpu.py training           the same: a training step
python scripts/benchmark_gpu.py graphs             a training step of Tiny, also by torch.compile and as a CUDA graph
python scripts/benchmark_gpu.py graphs-inference   a picture by Tiny in the same ways

Every part prints a Markdown table row by row, and how long it took. After 7 minutes the rows that are left are not
measured, so that a part takes less than 8. Times are medians by CUDA events, in milliseconds, with the caches emptied
before each run: of layers the GPU's own time, of networks with what waiting for the CPU adds. Memory is the most that
was in use, in MB. Figures are shown next to those of the published kernel in the same run, and next to the project's
goals. A row that cannot be measured says so, and the others go on; the exit code is then 1.
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import functools
import importlib.util
import io
import re
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.sizes import SCALES, SIZES, size_options
from dlgsanet.memory import is_out_of_memory
from dlgsanet.ops import dispatch
from dlgsanet.ops.autocast import in_autocast_dtype
from dlgsanet.ops.backends import LayerFunctions, cuda, reference
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv, LocalAttention

T = TypeVar("T")

DEVICE = "cuda"
SOURCE = Path(__file__).resolve().with_suffix(".cu")  # the kernels as published

LAYERS = {"tiny": ("Tiny and Light", 48, 8, 12), "large": ("Large", 90, 15, 22)}  # channels, groups, features
SIZES_OF_LAYERS = [(1, 180, 320), (1, 678, 1020), (16, 48, 48)]
COMPILED_SIZES = [(1, 180, 320), (16, 48, 48)]
WINDOW = 7
PRECISIONS = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
PICTURE = (720, 1280)  # height and width of what networks make
PATCHES = (16, 48)  # batch, and side of the LR patches, of a training step
COMPILED_SCALE = 4  # of Tiny's step by torch.compile and as a CUDA graph

# How many times faster than as published: a layer, a training step, and an image of Tiny x4.
FORWARD_GOALS = {"tiny": 8, "large": 6}
BACKWARD_GOALS = {"tiny": {"fp32": 2.4, "TF32": 2.4, "bf16": 1}, "large": {"fp32": 2, "TF32": 2, "bf16": 1}}
PUBLISHED, PLAIN, OURS, COMPILE = "as published", "plain definition", "ours", ", torch.compile"
GRAPH = "ours, CUDA graph"  # of an iteration
REPLAYED = "ours, CUDA graph of a call"  # as `upscale`, `test` and `benchmark` run a frozen network
STEP_GOALS = {
    "DLGSANet Tiny": {OURS: 1.3, OURS + COMPILE: 2, GRAPH: 2.2},
    "DLGSANet Large": {GRAPH: 2},
}
CALL_GOALS = {"fp32": 4, "bf16": 6}  # of Tiny x4, replayed
MEGABYTES_GOAL = 2500  # less than as published, in training Large in fp32

SECONDS = 0.5  # of one measurement
HEAD_START = 4_000_000  # cycles, some 2 ms, that the GPU sleeps while the CPU starts what is measured
LIMITS: list[float] = []  # when the last row may begin, and when it must end, by time.monotonic()
FAILED: list[list[str]] = []  # rows that were not measured, if not for lack of memory
PATIENCE = {"layer": 120, "network": 240}  # seconds for a row; torch.compile may take minutes
PART_SECONDS = 420  # of a part; a row that is begun before may take as long as its patience, cut to LAST_ROW_SECONDS
LAST_ROW_SECONDS = 470

# What each part imports, other than torch, CuPy and NumPy. BasicSR has the networks that others are compared with.
NEEDS = {
    "test": ("scipy", "pytest", "pytest_timeout", "xdist", "hypothesis"),
    "inference": ("basicsr",),
    "training": ("basicsr",),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*LAYERS, "feed-forward", *NETWORKS, "needs"])
    parser.add_argument("of", nargs="?", choices=list(NEEDS), help="of needs: only report what is missing here")
    parser.add_argument("--append", metavar="FILE", help="write what is printed to the end of this file too")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only rows whose first cells match: 'Tiny x4 ours'")
    args = parser.parse_args()
    if reason := missing(args.of or args.part) or why_not():
        print(f"{reason}: nothing was {'tested' if args.of == 'test' else 'measured'}", file=sys.stderr)
        return 2
    if args.part == "needs":
        return 0
    run = functools.partial(
        benchmark_layer if args.part in LAYERS
        else benchmark_feed_forward if args.part == "feed-forward"
        else benchmark_networks,
        args.part,
    )  # fmt: skip
    chosen = re.compile(args.rows)
    with also_in(args.append):
        started = time.monotonic()
        LIMITS[:] = [started + PART_SECONDS, started + LAST_ROW_SECONDS]
        print(f"\n# {describe_machine()}\n")
        run(lambda cells: bool(chosen.search(" ".join(cells))))
        print(f"{time.monotonic() - started:.0f} s for this part.\n")
    return 1 if FAILED else 0


def missing(part: str) -> str | None:
    """The packages that a part needs and that are not installed, in words, or None."""
    names = [name for name in ("cupy", "numpy", *NEEDS.get(part, ())) if importlib.util.find_spec(name) is None]
    what = "this" if part == "needs" else part
    return f"{what} needs {', '.join(names)}, not installed for {sys.executable}" if names else None


def why_not() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU is present"
    image, filters = torch.empty(1, 1, 1, 1, device=DEVICE), torch.empty(1, 1, WINDOW, WINDOW, 1, 1, device=DEVICE)
    reason = cuda.BACKEND.refuses(DynamicConv(filters), image)
    return reason and f"the CUDA kernels cannot be used: {reason}"


def describe_machine() -> str:
    import cupy

    driver = cupy.cuda.runtime.driverGetVersion()
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else "missing"
    return (
        f"{datetime.date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, CuPy {cupy.__version__}, "
        f"Triton {triton}, CUDA {torch.version.cuda}, driver for CUDA {driver // 1000}.{driver // 10 % 100}"
    )


@contextlib.contextmanager
def also_in(path: str | None) -> Iterator[None]:
    """Write what is printed to the end of a file too."""
    if path is None:
        yield
        return

    screen = sys.stdout

    class Both(io.TextIOBase):
        def write(self, text: str) -> int:
            screen.write(text)
            screen.flush()
            written = file.write(text)
            file.flush()  # what was measured is kept, whatever ends this process
            return written

    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(Both()):
        yield


# Measuring


@functools.cache
def _cache_filler() -> Tensor:
    return torch.empty(64 << 20, device=DEVICE)  # 256 MB: more than any cache


def milliseconds(
    run: Callable[..., object], prepare: Callable[[], tuple] = tuple, head_start: int = HEAD_START
) -> float:
    """Median time of ``run(*prepare())`` from cold caches, without that of `prepare`.

    With a head start of the CPU, of so many cycles, the GPU's time alone.
    """
    times: list[float] = []
    begun = time.monotonic()
    for i in range(1000):
        arguments = prepare()
        _cache_filler().zero_()
        torch.cuda._sleep(head_start)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(*arguments)
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
        if time.monotonic() - begun > SECONDS and len(times) >= 5:
            break
    return statistics.median(times)


def peak_megabytes(run: Callable[[], T]) -> tuple[float, T]:
    """The most memory that is in use during `run`, without the cache filler, and what `run` answers."""
    filler = _cache_filler().nbytes
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    answer = run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - filler) / 1e6, answer


def set_tf32(on: bool) -> None:
    # The older switches: torch.compile reads them, which is an error once the newer ones were used.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on


@contextlib.contextmanager
def or_a_word(row: list[str], columns: int, seconds: int) -> Iterator[None]:
    """Fill the row with why it could not be measured: memory, time or an error, which is reported on stderr."""

    def too_long(*_):
        raise TimeoutError

    left = [limit - time.monotonic() for limit in LIMITS] or [seconds, seconds]
    signal.signal(signal.SIGALRM, too_long)
    word = ""
    try:
        # A row that may no longer begin is interrupted at once.
        signal.setitimer(signal.ITIMER_REAL, max(1, min(seconds, left[1])) if left[0] > 0 else 1e-3)
        yield
    except Exception as error:
        if is_out_of_memory(error):
            word = "out of memory"
        else:
            overdue = isinstance(error, TimeoutError) or "TimeoutError" in str(error)  # within one of torch.compile
            word = f"more than {seconds} s" if overdue else f"failed: {type(error).__name__}"
            if left[0] <= 0:
                word = "not begun: the part took too long"
            else:
                traceback.print_exc()
            FAILED.append(row)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if word:
        row += [word] + ["-"] * (columns - len(row) - 1)
    torch.cuda.empty_cache()


def faster(ms: float, base: float | None, goal: float | None = None) -> str:
    """A time, with how many times faster than `base` it is and whether that is the goal."""
    return f"{ms:.3f}" + (_beside(f"{base / ms:.2f}", base / ms, goal) if base else "")


def smaller(megabytes: float, base: float | None, goal: float | None = None) -> str:
    """A peak of memory, with how much less than `base` it is and whether that is the goal."""
    return f"{megabytes:.0f}" + (_beside(f"{base - megabytes:.0f} less", base - megabytes, goal) if base else "")


def _beside(text: str, reached: float, goal: float | None) -> str:
    return f" ({text})" if goal is None else f" ({text}; goal {goal}: {'met' if reached >= goal else 'not met'})"


def print_table(head: list[str], rows: Iterator[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


# One layer, in five ways: functions of x, z, weight, bias


def launch_published(kernel: str, first: Tensor, second: Tensor, out: Tensor, channels_in_group: int) -> Tensor:
    constants = {
        "SCALAR": cuda.SCALARS[out.dtype], "CHANNELS": channels_in_group, "WINDOW": WINDOW,
        "HEIGHT": out.shape[-2], "WIDTH": out.shape[-1],
    }  # fmt: skip
    module = cuda_modules.load(cuda_modules.Instance(str(SOURCE), tuple(constants.items())), out.device)
    module.launch(kernel, -(-out.numel() // 256), 256, 0, first, second, out, out.numel())
    return out


class _Published(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return launch_published("published_forward", x, filters, torch.empty_like(x), x.shape[1] // filters.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, filters = ctx.saved_tensors
        channels, grad = x.shape[1] // filters.shape[1], grad.contiguous()
        grad_x = launch_published("published_grad_x", grad, filters, torch.empty_like(x), channels)
        return grad_x, launch_published("published_grad_filters", grad, x, torch.empty_like(filters), channels)


def _expand(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    filters = F.conv2d(z, weight.to(z.dtype)[:, :, None, None], bias.to(z.dtype))
    return filters.unflatten(1, (-1, WINDOW, WINDOW))


def published(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _Published.apply(x.contiguous(), _expand(z, weight, bias).contiguous())


def unfolded(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    filters = _expand(z, weight, bias).flatten(2, 3).unsqueeze(2)  # [B, G, 1, K * K, H, W]
    taps = F.unfold(x, WINDOW, padding=WINDOW // 2).view(len(x), filters.shape[1], -1, WINDOW**2, *x.shape[2:])
    return (filters * taps).sum(3).flatten(1, 2)


def plain(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.dynamic_depthwise_conv(x, _expand(z, weight, bias))


def fused(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.fused_dynamic_depthwise_conv(x, z, weight, bias, WINDOW)


@functools.partial(torch.compile, dynamic=False)  # two sizes, each for itself
def compiled(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.fused_dynamic_depthwise_conv(FusedDynamicConv(z, weight, bias, WINDOW), x)


WAYS = {
    "1x1 convolution, kernel as published": published,
    "1x1 convolution, unfold": unfolded,
    "torch.compile of the definition": compiled,
    "1x1 convolution, plain kernel": plain,
    "fused kernel": fused,
}


Chosen = Callable[[list[str]], bool]  # whether a row with these first cells is to be measured


def benchmark_layer(part: str, chosen: Chosen) -> None:
    name, channels, groups, features = LAYERS[part]
    print(f"## The dynamic convolution of {name}\n")
    print("Forward and backward in ms, peak of both in MB; in brackets, how many times faster than as published.\n")
    head = ["size", "precision", "way", "forward", "backward", "peak"]

    def rows() -> Iterator[list[str]]:
        for size in SIZES_OF_LAYERS:
            for precision, (dtype, tf32) in PRECISIONS.items():
                set_tf32(tf32)
                base: tuple[float | None, float | None] = None, None
                for way, function in WAYS.items():
                    if function is compiled and (size not in COMPILED_SIZES or precision != "fp32"):
                        continue
                    row = ["x".join(map(str, size)), precision, way]
                    if not chosen(row):
                        continue
                    with or_a_word(row, len(head), PATIENCE["layer"]):
                        forward, backward, peak = measure_layer(function, size, dtype, channels, groups, features)
                        if function is published:
                            base = forward, backward
                        ours = function is fused
                        row += [
                            faster(forward, base[0], FORWARD_GOALS[part] if ours else None),
                            faster(backward, base[1], BACKWARD_GOALS[part][precision] if ours else None),
                            f"{peak:.0f}",
                        ]
                    yield row

    print_table(head, rows())


def layer_inputs(
    size: tuple[int, int, int], dtype: torch.dtype, channels: int, groups: int, features: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, z, weight and bias of a layer, on torch's default device; weight and bias in float32."""
    batch, height, width = size
    outputs = groups * WINDOW**2
    x = torch.randn(batch, channels, height, width, dtype=dtype, requires_grad=True)
    z = torch.randn(batch, features, height, width, dtype=dtype, requires_grad=True)
    weight = (torch.randn(outputs, features) / features**0.5).requires_grad_()
    return x, z, weight, torch.randn(outputs, requires_grad=True)


def measure_layer(function, size: tuple[int, int, int], dtype: torch.dtype, channels: int, groups: int, features: int):
    """(forward ms, backward ms, peak MB) of one way."""
    with torch.device(DEVICE):
        inputs = layer_inputs(size, dtype, channels, groups, features)
    grad = torch.randn_like(inputs[0])

    def differentiate(out: Tensor) -> None:
        torch.autograd.grad(out, inputs, grad)

    differentiate(function(*inputs))  # compiles
    with torch.no_grad():
        forward = milliseconds(lambda: function(*inputs))
    backward = milliseconds(differentiate, prepare=lambda: (function(*inputs),))
    return forward, backward, peak_megabytes(lambda: differentiate(function(*inputs)))[0]


# The gated feed-forward layer without gradients


def benchmark_feed_forward(part: str, chosen: Chosen) -> None:
    """The next backends choose among their own kernels, as in networks."""
    print("## The gated feed-forward layer without gradients\n")
    print("In ms, with frozen weights; in brackets, how many times faster than the plain definition.\n")
    backends = {"plain definition": "reference", "PyTorch": "torch", "Triton kernels": "triton", "one kernel": "cuda"}

    def rows() -> Iterator[list[str]]:
        for name, channels, *_ in LAYERS.values():
            for size in SIZES_OF_LAYERS:
                bases: dict[str, float] = {}
                for way, backend in backends.items():
                    row = [name, "x".join(map(str, size)), way]
                    if not chosen(row):
                        continue
                    for precision, (dtype, tf32) in PRECISIONS.items():
                        set_tf32(tf32)
                        with or_a_word(row, len(row) + 1, PATIENCE["layer"]):
                            ms = measure_feed_forward(backend, size, dtype, channels)
                            bases.setdefault(precision, ms)
                            row.append(faster(ms, bases[precision]))
                    yield row

    print_table(["layer", "size", "way", *PRECISIONS], rows())


def measure_feed_forward(backend: str, size: tuple[int, int, int], dtype: torch.dtype, channels: int) -> float:
    batch, height, width = size
    layer = on_device(GDFN(channels)).to(dtype).eval()
    ops.freeze(layer)
    x = torch.randn(batch, channels, height, width, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        compute = functools.partial(dispatch.load(backend).infer, layer.record(), x)
        compute()
        return milliseconds(compute)


# Whole networks


def networks() -> Iterator[tuple[str, int, nn.Module, list[str]]]:
    """(name, scale, network, ways) of the published networks, and of two that the field compares with."""
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.swinir_arch import SwinIR

    for size in SIZES:
        for scale in SCALES:
            network = DLGSANet(**size_options(size, scale))
            yield f"DLGSANet {size}", scale, network, [PUBLISHED, PLAIN, OURS]
    for scale in SCALES:
        network = SwinIR(
            upscale=scale, img_size=PATCHES[1], window_size=8, img_range=1.0, depths=[6] * 4, embed_dim=60,
            num_heads=[6] * 4, mlp_ratio=2, upsampler="pixelshuffledirect",
        )  # fmt: skip
        yield "SwinIR-light", scale, network, ["BasicSR"]
    for scale in SCALES:
        network = EDSR(3, 3, num_feat=256, num_block=32, upscale=scale, res_scale=0.1, img_range=1.0)
        yield "EDSR", scale, network, ["BasicSR"]


@contextlib.contextmanager
def served(way: str) -> Iterator[None]:
    """Have networks compute their layers by the plain definition, with the published convolution or not, or by ours."""
    if way == PUBLISHED:
        layer = LayerFunctions(local_attention_as_published, local_attention_as_published)
        with dispatch.using(dataclasses.replace(reference.BACKEND, name="published", dynamic_local_attention=layer)):
            yield
    elif way.startswith(PLAIN):
        with dispatch.using("reference"):
            yield
    else:
        yield


def local_attention_as_published(layer: LocalAttention, x: Tensor) -> Tensor:
    return reference.dynamic_local_attention(
        layer, x, lambda call, y: in_autocast_dtype(published, y, call.z, call.weight, call.bias)
    )


Measure = Callable[[nn.Module, int, torch.dtype, str], tuple[float, float]]


def benchmark_networks(part: str, chosen: Chosen) -> None:
    title, measure, more = NETWORKS[part]
    print(f"## {title}\n")
    entries = networks()
    if part.startswith("graphs"):
        tiny = DLGSANet(**size_options("Tiny", COMPILED_SCALE))
        entries = iter([("DLGSANet Tiny", COMPILED_SCALE, tiny, [PUBLISHED, PLAIN, OURS])])
    print_networks(((*entry, [*ways, *more] if OURS in ways else ways) for *entry, ways in entries), measure, chosen)


def print_networks(entries: Iterator[tuple[str, int, nn.Module, list[str]]], measure: Measure, chosen: Chosen) -> None:
    """A row for each way of each network: milliseconds and megabytes by `measure`, in each precision."""
    print("In brackets, how many times faster and how many MB less than as published.\n")
    head = ["network", "scale", "way", *(f"{precision} {unit}" for precision in PRECISIONS for unit in ("ms", "MB"))]

    def rows() -> Iterator[list[str]]:
        for name, scale, network, ways in entries:
            bases: dict[str, tuple[float, float]] = {}
            for way in ways:
                row = [name, f"x{scale}", way]
                if not chosen(row):
                    continue
                for precision, (dtype, tf32) in PRECISIONS.items():
                    set_tf32(tf32)
                    # Each precision has its own time: all of them compile.
                    with or_a_word(row, len(row) + 2, PATIENCE["network"]), served(way):
                        ms, megabytes = measure(network, scale, dtype, way)
                        base = bases.get(precision, (None, None))
                        goals = goals_of(measure, name, scale, way, precision)
                        row += [faster(ms, base[0], goals[0]), smaller(megabytes, base[1], goals[1])]
                        if way == PUBLISHED:
                            bases[precision] = ms, megabytes
                yield row

    print_table(head, rows())


def goals_of(measure: Measure, name: str, scale: int, way: str, precision: str) -> tuple[float | None, int | None]:
    """How many times faster than as published a way should be, and how many MB less it should need."""
    if measure is measure_step and (goals := STEP_GOALS.get(name, {}).get(way)):
        return goals, None
    if (name, scale, way) == ("DLGSANet Tiny", 4, REPLAYED):
        return CALL_GOALS.get(precision), None
    saves_memory = (name, way, precision) == ("DLGSANet Large", OURS, "fp32") and measure is measure_step
    return None, MEGABYTES_GOAL if saves_memory else None


def measure_inference(network: nn.Module, scale: int, dtype: torch.dtype, way: str) -> tuple[float, float]:
    torch.compiler.reset()
    network = on_device(network).eval()
    height, width = (pixels // scale // 8 * 8 for pixels in PICTURE)  # SwinIR takes whole windows
    image = torch.rand(1, 3, height, width, device=DEVICE)
    autocast = dtype != torch.float32
    if way == REPLAYED:
        ops.freeze(network.to(dtype))
        image, autocast = image.to(dtype), False
    compute = torch.compile(network) if way.endswith(COMPILE) else network

    def run() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, dtype, enabled=autocast):
            compute(image)

    for _ in range(3):  # the third call is the first replay
        run()
    return milliseconds(run, head_start=0), peak_megabytes(run)[0]


def measure_step(network: nn.Module, scale: int, dtype: torch.dtype, way: str) -> tuple[float, float]:
    torch.compiler.reset()
    network = on_device(network).train()
    graph = way == GRAPH
    optimizer = torch.optim.Adam(network.parameters(), 1e-6, capturable=graph)
    run = torch.compile(network) if way.endswith(COMPILE) else network
    batch, side = PATCHES
    low = torch.rand(batch, 3, side, side, device=DEVICE)
    high = torch.rand(batch, 3, side * scale, side * scale, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            out = run(low)
        F.l1_loss(out.float(), high).backward()
        optimizer.step()

    peak, repeated = peak_megabytes(lambda: (captured if graph else warmed_up)(step))
    return milliseconds(repeated, head_start=0), peak


# The whole networks' parts: title, what is measured, and the ways in addition to those of a network of ours.
NETWORKS = {
    "inference": (
        f"A picture of {PICTURE[1]} x {PICTURE[0]} pixels from whole networks",
        measure_inference,
        [REPLAYED],
    ),
    "training": (
        "A training step: forward, L1, backward, Adam; {} patches of {} x {}".format(*PATCHES, PATCHES[1]),
        measure_step,
        [GRAPH],
    ),
    # torch.compile, which takes most of the time, comes last.
    "graphs": ("The training step of Tiny in every way", measure_step, [GRAPH, PLAIN + COMPILE, OURS + COMPILE]),
    "graphs-inference": (
        "A picture by Tiny in every way",
        measure_inference,
        [REPLAYED, PLAIN + COMPILE, OURS + COMPILE],
    ),
}


def on_device(network: nn.Module) -> nn.Module:
    """A copy: what earlier measurements left at the parameters would be in memory, and in a capture's way."""
    return copy.deepcopy(network).to(DEVICE)


def warmed_up(step: Callable[[], None]) -> Callable[[], None]:
    """The step itself, once all was compiled and the optimiser has its state, with which a second step needs most."""
    for _ in range(2):
        step()
    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph: its tensors are those of the capture, its optimiser's state lies on the GPU."""
    aside = torch.cuda.Stream()  # no capture is possible on the default stream, or of nodes of autograd made there
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        step()

    def replay(of: Callable[[], None] = step) -> None:  # keeps what the graph works on: its optimiser's state
        graph.replay()

    return replay


if __name__ == "__main__":
    sys.exit(main())
