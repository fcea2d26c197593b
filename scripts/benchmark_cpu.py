"""CPU benchmark: the dynamic convolution, the networks, a training step and their memory, each backend in turn.

  python scripts/benchmark_cpu.py                             the whole table, below 8 minutes on two cores
  python scripts/benchmark_cpu.py --quick                     the same at small sizes, to see that all of it runs
  python scripts/benchmark_cpu.py --output docs/benchmarks    to the file of the instruction set: cpu_avx2.md
  python scripts/benchmark_cpu.py --compare PATH              native, next to an older checkout (built) at PATH
  python scripts/benchmark_cpu.py --shares                    native's share of the rate of sgemm, one thread and all

Measure with nothing else running. Rows of a table are run alternately within one process, a round after the other,
after one round to warm up; times are medians, ratios are to the table's first row. glibc's allocator is as it
is, and with --shares as `dlgsanet train` sets it.

  naive       the reference, whose dynamic convolution unfolds the image and multiplies by all filters, as is usual
  reference   the same network with the reference's dynamic convolution
  torch, native   the other backends of dlgsanet.ops that are to be had here
  SwinIR-light, EDSR-baseline   BasicSR's, of random weights; SwinIR's input is padded to whole windows;
                              scripts/light_networks.py has more networks
  onnxruntime, OpenVINO   the network of `dlgsanet export`, run by these with as many threads as torch has, in float32;
                          left out, and named, where a package is missing
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

CHECKOUT = "DLGSANET_BENCH_CHECKOUT"  # the variable with which child processes find the checkout to measure
REPOSITORY = Path(os.environ.get(CHECKOUT) or Path(__file__).resolve().parents[1])
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dlgsanet import allocator, files  # noqa: E402
from dlgsanet.archs.dlgsanet import DLGSANet  # noqa: E402
from dlgsanet.archs.feed_forward import GDFN  # noqa: E402
from dlgsanet.archs.mhdlsa import MHDLSA  # noqa: E402
from dlgsanet.archs.sizes import size_options  # noqa: E402
from dlgsanet.archs.sparse_gsa import SparseGSA  # noqa: E402
from dlgsanet.errors import UserError  # noqa: E402
from dlgsanet.evaluation.complexity import multiply_accumulates  # noqa: E402
from dlgsanet.ops import KeptMemory, dispatch, empty, operators  # noqa: E402
from dlgsanet.ops.backends import LayerFunctions, reference  # noqa: E402
from dlgsanet.ops.records import FusedDynamicConv, LocalAttention  # noqa: E402

OTHERS = ("SwinIR-light", "EDSR-baseline")
EXPORTING = ("onnx", "onnxscript", "onnxruntime")
EXPORTED = {"onnxruntime": EXPORTING, "OpenVINO": (*EXPORTING, "openvino")}  # rows and the packages that they need
EXPORTED_FILE = "DLGSANET_BENCH_EXPORTED"  # the variable with which child processes find where the exported network is
SWINIR_WINDOW = 8


@dataclass(frozen=True)
class Sizes:
    """What is measured: the LR image (width, height), patches of a training batch and their side, sgemm's side."""

    width: int
    height: int
    batch: int
    patch: int
    sgemm: int


FULL, QUICK = Sizes(320, 180, 8, 48, 2048), Sizes(40, 24, 2, 16, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; default 3")
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file, or folder")
    parser.add_argument("--compare", type=Path, metavar="PATH", help="only native, next to the checkout at PATH")
    parser.add_argument("--shares", action="store_true", help="only native's rates as shares of that of sgemm")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # what a child process measures
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    sizes = QUICK if arguments.quick else FULL
    rounds = 1 if arguments.quick else arguments.rounds
    if arguments.part:
        print(json.dumps(measure_part(arguments.part, sizes, rounds)))
        return
    path: Path | None = arguments.output
    if path:
        if path.suffix != ".md":  # the folder of the published tables
            if arguments.quick or arguments.compare or arguments.shares:
                parser.error("--output: a folder is for the tables of a full run; give the name of a .md file")
            path = path / f"cpu_{instruction_set()}.md"
        try:
            files.check_can_write(path)
        except UserError as error:  # before minutes of measurements
            parser.error(f"--output: {error}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[EXPORTED_FILE] = str(Path(folder, "tiny_x4.onnx"))
        if arguments.compare:
            lines = comparison(arguments.compare.resolve(), rounds, arguments.quick)
        elif arguments.shares:
            lines = shares(rounds, arguments.quick)
        else:
            lines = tables(sizes, rounds, arguments.quick)
        text = "\n".join(lines)
    print(text)
    if path:
        files.write_whole(path, f"{text}\n".encode())


# The tables, from what child processes measured


def tables(sizes: Sizes, rounds: int, quick: bool) -> Iterator[str]:
    if exported_rows():
        in_child("stock", quick, "export")
    measured = in_child("stock", quick, "times", rounds=rounds)
    yield from heading(rounds)
    for title, times in measured["times"].items():
        yield from ["", f"## {title}", "", "| | ms | ratio | of sgemm's rate |", "|---|---:|---:|---:|"]
        base = next(iter(times.values()))
        for row, seconds in times.items():
            macs = measured["macs"][title].get(row)
            share = f"{macs / seconds / measured['sgemm']:.0%}" if macs else ""
            yield f"| {row} | {seconds * 1000:.1f} | {base / seconds:.2f} | {share} |"
    yield from ["", f"sgemm of side {sizes.sgemm}: {measured['sgemm'] / 1e9:.1f} GMAC/s."]
    yield from ["", f"## Peak memory, Tiny x4, {sizes.width}x{sizes.height} input, beyond the idle process [MB]", ""]
    yield from ["| | MB |", "|---|---:|"]
    for row in ["naive", *available_backends()[::-1], *OTHERS, *exported_rows()]:
        peak = in_child("stock", quick, "memory", row, str(sizes.width), str(sizes.height))
        yield f"| {row} | {peak:.0f} |"


def comparison(older: Path, rounds: int, quick: bool) -> Iterator[str]:
    """The native backend of this checkout and of an older one, each in processes of its own that run in turn."""
    if not (older / "dlgsanet").is_dir():
        sys.exit(f"benchmark_cpu.py: --compare: {older} is not a checkout of this repository")
    turns = [
        [in_child("stock", quick, "native", rounds=rounds, checkout=path) for path in (older, REPOSITORY)]
        for _ in range(2)
    ]
    sides = list(zip(*turns, strict=True))
    yield from heading(rounds)
    yield from ["", f"| native | {older.name} [ms] | this checkout [ms] | ratio | of sgemm's rate |"]
    yield "|---|---:|---:|---:|---:|"
    for title, counted in sides[1][0]["macs"].items():
        before, after = (min(turn["times"][title]["native"] for turn in side) for side in sides)
        macs = counted.get("native")
        share = f"{macs / after / max(turn['sgemm'] for turn in sides[1]):.0%}" if macs else ""
        yield f"| {title} | {before * 1000:.1f} | {after * 1000:.1f} | {before / after:.2f} | {share} |"


def shares(rounds: int, quick: bool) -> Iterator[str]:
    yield from heading(rounds)
    yield from ["", "Shares of the rate of sgemm, which runs before each of them, and milliseconds.", ""]
    yield from ["| native | one thread | ms | all threads | ms |", "|---|---:|---:|---:|---:|"]
    for title, (one, every) in in_child("tuned", quick, "shares", rounds=rounds).items():
        cells = (f"{share:.0%} | {seconds * 1000:.1f}" for share, seconds in (one, every))
        yield f"| {title} | {' | '.join(cells)} |"


def heading(rounds: int) -> Iterator[str]:
    yield "# CPU benchmark"
    yield ""
    capability = torch.backends.cpu.get_cpu_capability()
    yield (
        f"{datetime.date.today()}: {processor()}, {capability}, L2 cache {second_level_cache()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32; "
        f"{rounds} rounds; `python scripts/benchmark_cpu.py`."
    )
    for row in EXPORTED:
        if missing := missing_packages(row):
            yield from ["", f"No rows of {row}: pip install {' '.join(missing)}"]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def instruction_set() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()


def second_level_cache() -> str:
    """The size of the first core's second-level cache, as Linux reports it."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == "2":
            return (index / "size").read_text().strip()
    return "of unknown size"


def in_child(allocator_name: str, quick: bool, *part: str, rounds: int = 1, checkout: Path = REPOSITORY):
    command = [sys.executable, __file__, "--rounds", str(rounds), *["--quick"] * quick, "--part", *part]
    environment = os.environ | {
        allocator.VARIABLE: allocator_name,
        CHECKOUT: str(checkout),
        "PYTHONPATH": str(checkout),
    }
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
    if child.returncode:
        sys.exit(f"benchmark_cpu.py: {' '.join(part)} with the {allocator_name} allocator failed")
    return json.loads(child.stdout)


# What a child measures


def measure_part(part: list[str], sizes: Sizes, rounds: int):
    allocator.keep_freed_memory()
    torch.manual_seed(0)
    if part[0] == "export":
        from dlgsanet.inference.export import export

        return export(network("torch", "Tiny").requires_grad_(False), Path(os.environ[EXPORTED_FILE]))
    if part[0] == "shares":
        return shares_of_sgemm(sizes, rounds)
    if part[0] == "memory":
        _, row, width, height = part
        return peak_memory(row, int(width), int(height))
    times, macs = {}, {}
    for title, group, macs[title] in native_groups(sizes) if part[0] == "native" else groups(sizes):
        times[title] = alternate(group, rounds)
    return {"times": times, "macs": macs, "sgemm": sgemm_rate(sizes.sgemm)}


def groups(sizes: Sizes) -> Iterator[tuple[str, dict[str, Callable[[], object]], dict[str, int]]]:
    """(title, what to run, multiply-accumulates of what is counted) of every table."""
    image, patches = (1, sizes.height, sizes.width), (sizes.batch, sizes.patch, sizes.patch)
    every, fast = ["naive", *available_backends()[::-1]], fast_backends()
    at = f"{sizes.width}x{sizes.height}"
    of_patches = f"{sizes.batch} of {sizes.patch}x{sizes.patch}"

    forward = {row: serve(row, convolution(row, *image)) for row in every}
    yield f"Dynamic convolution of Tiny, forward, {at}", forward, {}
    both = {row: serve(row, convolution(row, *patches, backward=True)) for row in every}
    yield f"Dynamic convolution of Tiny, forward and backward, {of_patches}", both, {}

    for size, rows in (("Tiny", [*every, *OTHERS, *exported_rows()]), ("Light", fast), ("Large", fast)):
        networks = {row: network(row, size) for row in rows}
        group = {
            row: serve(row, inference(net, *padded(row, sizes.height, sizes.width))) for row, net in networks.items()
        }
        counted = {row: networks["naive"] if row in EXPORTED else net for row, net in networks.items()}
        macs = {r: multiply_accumulates(n, *padded(r, sizes.height, sizes.width)) for r, n in counted.items()}
        yield f"{size} x4, {at} input", group, macs
    one = {r: on_one_thread(serve(r, inference(network(r, "Tiny"), sizes.height, sizes.width))) for r in fast}
    yield f"Tiny x4, {at} input, one thread", one, {}
    yield from layer_groups(sizes, fast)
    step = training_step(sizes)
    yield f"Training step of Tiny x2, {of_patches}", {row: serve(row, step) for row in every}, {}


def layer_groups(
    sizes: Sizes, rows: list[str]
) -> Iterator[tuple[str, dict[str, Callable[[], object]], dict[str, int]]]:
    """The three layers of Tiny, each with its multiply-accumulates."""
    c, half, squeezed, taps, heads = 48, 96, 12, 49, 6
    per_pixel: dict[str, tuple[nn.Module, int]] = {
        "MHDLSA": (MHDLSA(c), 2 * c * c + squeezed * (c + taps + c // 6 * taps) + c * taps),
        "SparseGSA": (SparseGSA(c, heads, tlc_kernel=48), 4 * c * c + 27 * c + 2 * c * c // heads),
        "GDFN": (GDFN(c, 2.0), 3 * half * c + 18 * half),
    }
    with KeptMemory() as memory:  # as in a network: in huge pages
        x = empty(1, c, sizes.height, sizes.width).uniform_()

    def compute(layer: nn.Module) -> None:
        with memory, torch.inference_mode():
            layer(x)

    for name, (layer, macs) in per_pixel.items():
        run = partial(compute, layer.eval())
        total = macs * sizes.height * sizes.width
        title = f"{name} of Tiny, {sizes.width}x{sizes.height}"
        yield title, {row: serve(row, run) for row in rows}, dict.fromkeys(rows, total)


def native_groups(
    sizes: Sizes,
) -> Iterator[tuple[str, dict[str, Callable[[], object]], dict[str, int]]]:
    """What `--compare` measures."""
    for title, run, macs in counted(sizes):
        yield title, {"native": run}, {"native": macs}
        if title.startswith("Tiny x4"):
            yield f"{title}, one thread", {"native": on_one_thread(run)}, {}


def counted(sizes: Sizes) -> Iterator[tuple[str, Callable[[], object], int]]:
    """(title, what to run, its multiply-accumulates) of native's layers and networks."""
    for title, group, macs in layer_groups(sizes, ["native"]):
        yield title, group["native"], macs["native"]
    height, width = sizes.height, sizes.width
    for size, scale, factor in (("Tiny", 4, 1), ("Light", 4, 1), ("Large", 4, 1), ("Tiny", 2, 2)):
        net, image = DLGSANet(**size_options(size, scale)).eval(), (factor * height, factor * width)
        title = f"{size} x{scale}, {image[1]}x{image[0]} input"
        yield title, serve("native", inference(net, *image)), multiply_accumulates(net, *image)
    of_patch = multiply_accumulates(DLGSANet(**size_options("Tiny", 2)), sizes.patch, sizes.patch)
    title = f"Training step of Tiny x2, {sizes.batch} of {sizes.patch}x{sizes.patch}"
    yield title, serve("native", training_step(sizes)), 3 * sizes.batch * of_patch  # forward, and two gradients


def alternate(group: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn, one round ahead to warm up."""
    seconds: dict[str, list[float]] = {row: [] for row in group}
    for _ in range(1 + rounds):
        for row, run in group.items():
            start = time.perf_counter()
            run()
            seconds[row].append(time.perf_counter() - start)
    return {row: statistics.median(times[1:]) for row, times in seconds.items()}


def sgemm_rate(side: int) -> float:
    """Multiply-accumulates a second of a float32 matrix product: the best of five."""
    a, b = torch.rand(2, side, side)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return side**3 / min(times[1:])


def shares_of_sgemm(sizes: Sizes, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """The share of sgemm's rate, and seconds, of each that `counted` yields, on one thread and on all."""
    factors, shares = torch.rand(2, sizes.sgemm, sizes.sgemm), {}
    for title, run, macs in counted(sizes):
        shares[title] = []
        for limited in (on_one_thread, partial):
            group = {"sgemm": limited(partial(torch.mm, *factors)), "native": limited(run)}
            seconds = alternate(group, rounds)
            rate = sizes.sgemm**3 / seconds["sgemm"]
            shares[title].append((macs / seconds["native"] / rate, seconds["native"]))
    return shares


def peak_memory(row: str, width: int, height: int) -> float:
    """Megabytes that one forward pass adds to the peak of this process."""
    run = serve(row, inference(network(row, "Tiny"), *padded(row, height, width)))
    torch.mm(*torch.rand(2, 64, 64))  # the libraries' own memory is there before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


# What is run


def available_backends() -> list[str]:
    """Names of the backends that take the convolution on this CPU, fastest first."""
    call = FusedDynamicConv(torch.rand(1, 1, 8, 8), torch.rand(49, 1), None, 7), torch.rand(1, 6, 8, 8)
    return [name for name in dispatch.candidates() if dispatch.load(name).refuses(*call) is None]


def missing_packages(row: str) -> list[str]:
    """Names of the packages that a row of an exported network needs and that are not here."""
    return [package for package in EXPORTED[row] if importlib.util.find_spec(package) is None]


def exported_rows() -> list[str]:
    return [row for row in EXPORTED if not missing_packages(row)]


def fast_backends() -> list[str]:
    return [name for name in available_backends()[::-1] if name != "reference"]


@contextmanager
def backend_of(row: str) -> Iterator[None]:
    """Have the layers served by the backend of a row; rows that are no backend run as they are."""
    if row in OTHERS or row in EXPORTED:
        yield
    elif row == "naive":
        layer = LayerFunctions(naive_local_attention, naive_local_attention)
        with dispatch.using(replace(reference.BACKEND, dynamic_local_attention=layer)):
            yield
    else:  # by the environment, which older checkouts know too
        with mock.patch.dict(os.environ, DLGSANET_BACKEND=row):
            yield


def naive_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return reference.dynamic_local_attention(layer, x, lambda call, y: unfolded(y, *call))


def serve(row: str, work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with backend_of(row):
            return work()

    return run


def on_one_thread(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(threads)

    return run


def unfolded(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    """The dynamic convolution as it is usually written: all filters, all shifted copies of the image, their product."""
    batch, _, height, width = x.shape
    taps = window_size**2
    filters = F.conv2d(z, weight[..., None, None], bias).view(batch, -1, 1, taps, height, width)
    shifted = F.unfold(x, window_size, padding=window_size // 2)
    shifted = shifted.view(batch, filters.shape[1], -1, taps, height, width)
    return (shifted * filters).sum(3).view(x.shape)


def convolution(row: str, batch: int, height: int, width: int, backward: bool = False) -> Callable[[], object]:
    """The dynamic convolution of Tiny: 48 channels, 8 filters a pixel of 7x7, formed from 12 features."""
    x, z = torch.rand(batch, 48, height, width), torch.rand(batch, 12, height, width)
    weight, bias = torch.rand(8 * 49, 12), torch.rand(8 * 49)
    tensors = [t.requires_grad_(backward) for t in (x, z, weight, bias)]
    convolve = unfolded if row == "naive" else operators.fused_dynamic_depthwise_conv

    def run() -> object:
        out = convolve(*tensors, 7)
        return torch.autograd.grad(out, tensors, torch.ones_like(out)) if backward else out

    return run


class Exported(nn.Module):
    """The exported network as another program runs it: [1, 3, H, W] -> [1, 3, 4 * H, 4 * W], float32."""

    def __init__(self, row: str):
        super().__init__()
        path, threads = os.environ[EXPORTED_FILE], torch.get_num_threads()
        if row == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.run = lambda image: session.run(None, {"image": image})[0]
        else:
            import openvino

            # Without the second it would compute in bfloat16 where the processor can.
            settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(path, "CPU", settings)
            self.run = lambda image: compiled(image)[0]

    def forward(self, image: Tensor) -> Tensor:
        return torch.from_numpy(self.run(image.numpy()))


def network(row: str, size: str) -> nn.Module:
    """A network x4 of random weights: of this project, or the row's own. What is exported is Tiny alone."""
    if row in EXPORTED:
        return Exported(row)
    if row in OTHERS:
        import dlgsanet.basicsr_compat  # noqa: F401, I001  # before BasicSR
        from basicsr.archs.edsr_arch import EDSR
        from basicsr.archs.swinir_arch import SwinIR

        if row == "EDSR-baseline":
            return EDSR(3, 3, num_feat=64, num_block=16, upscale=4).eval()
        light = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "window_size": SWINIR_WINDOW, "mlp_ratio": 2}
        return SwinIR(upscale=4, upsampler="pixelshuffledirect", **light).eval()
    return DLGSANet(**size_options(size, 4)).eval()


def padded(row: str, height: int, width: int) -> tuple[int, int]:
    """The size that a row's network computes."""
    multiple = SWINIR_WINDOW if row == "SwinIR-light" else 1
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def inference(net: nn.Module, height: int, width: int) -> Callable[[], object]:
    x = torch.rand(1, 3, height, width)
    return torch.inference_mode()(lambda: net(x))


def training_step(sizes: Sizes) -> Callable[[], object]:
    net = DLGSANet(**size_options("Tiny", 2)).train()
    optimizer = torch.optim.Adam(net.parameters(), 5e-4, (0.9, 0.99), fused=True)  # as `dlgsanet train`
    lq, gt = (torch.rand(sizes.batch, 3, side, side) for side in (sizes.patch, 2 * sizes.patch))

    def run() -> None:
        optimizer.zero_grad()
        F.l1_loss(net(lq), gt).backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
