"""Time of a training iteration, split into its phases, and peak memory, of the networks of our option files.

  python scripts/benchmark_training.py                                   the nine networks, as published
  python scripts/benchmark_training.py --networks Tiny_x2 --batch 4 --patch 32 --iterations 5
  python scripts/benchmark_training.py --set train:precision=bf16 train:compile=true
  python scripts/benchmark_training.py --output docs/benchmarks/training.md

Measure with nothing else running. Trains on scikit-image's photographs with the loop's own parts. Times are medians
over the iterations after those that warm up (one on a CPU, five on a GPU); waiting for data is what the loop waits
for, not what the workers work. With train:cuda_graph=true all computing is in the phase "step". Memory is the GPU's
peak, or the peak of the process. Each network runs in a process of its own.
"""

import argparse
import datetime
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from dlgsanet import files  # noqa: E402
from dlgsanet.cli import run  # noqa: E402
from dlgsanet.commands.arguments import whole_number  # noqa: E402

PHASES = ("data", "forward", "backward", "step")
NETWORKS = [f"{size}_x{scale}" for size in ("Tiny", "Light", "Large") for scale in (2, 3, 4)]


class Clock:
    """Seconds of each phase of each iteration."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.phases: dict[str, list[float]] = defaultdict(list)

    def start(self) -> None:
        """Begin an iteration."""
        for phase in PHASES:
            self.phases[phase].append(0.0)
        self.last = time.perf_counter()

    def end(self, phase: str) -> None:
        """The phase that began where the former one ended is over."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.phases[phase][-1] += now - self.last
        self.last = now


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", type=whole_number(), help="patches in a batch; default: the option file's")
    parser.add_argument("--patch", type=whole_number(), help="side of an LR patch; default: the option file's")
    parser.add_argument("--workers", type=whole_number(0), default=2, help="data workers; default: %(default)s")
    parser.add_argument("--iterations", type=whole_number(), help="that are measured; default: 3 on a CPU, 10 on a GPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="more changes of the options")
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    arguments = parser.parse_args(argv)
    if arguments.output:
        files.check_can_write(arguments.output)
    lines = []
    for line in table(arguments):
        print(line, flush=True)
        lines.append(line)
    if arguments.output:
        files.write_whole(arguments.output, "\n".join([*lines, ""]).encode())
    return 0


def table(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, each as soon as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        where = f"{datetime.date.today()}: " + apart(
            prepare, folder, sorted({int(name[-1]) for name in arguments.networks})
        )
        changes = f" with {' '.join(arguments.set)}" if arguments.set else ""
        yield from ["# Training benchmark", "", f"{where}; `python scripts/benchmark_training.py`{changes}.", ""]
        yield from ["Time of an iteration and its parts in seconds; peak memory in GB.", ""]
        yield "| network | batch | iteration | data | forward | backward | step | images/s | memory |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        for name in arguments.networks:
            yield apart(measure, name, folder, arguments)


def apart(function: Callable[..., str], *values: Any) -> str:
    """Call a function in a process of its own, whose peak memory is its own too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *values).result()


def prepare(folder: str, scales: list[int]) -> str:
    """Lay out the photographs as DIV2K; what this is measured on."""
    import torch
    from skimage import data

    from dlgsanet.data.images import png_bytes
    from dlgsanet.data.layout import lay_out
    from dlgsanet.data.sources import images_of
    from dlgsanet.training.introduction import hardware

    source = Path(folder, "photographs")
    source.mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        (source / f"{name}.png").write_bytes(png_bytes(getattr(data, name)()))
    lay_out(images_of(source), Path(folder, "datasets", "DIV2K"), scales)
    return f"{hardware(torch.cuda.device_count())}, PyTorch {torch.__version__}"


def options_of(name: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a network's training file, changed as the command line says."""
    from dlgsanet.options.read import read_options

    size, scale = name.split("_x")
    (file,) = REPOSITORY.glob(f"options/train/train_SISR_ClassicDIV2K_{size}_*B_DLGSANet_SRx{scale}_scratch*.yml")
    changes = [f"datasets:train:num_worker_per_gpu={arguments.workers}", "num_gpu=auto", *arguments.set]
    if arguments.batch:
        changes.append(f"datasets:train:batch_size_per_gpu={arguments.batch}")
    if arguments.patch:
        changes.append(f"datasets:train:gt_size={arguments.patch * int(scale)}")
    for key in ("datasets:val:dataroot_gt", "datasets:val:dataroot_lq"):  # not used, but looked for
        changes.append(f"{key}={folder}")
    return read_options(file, is_train=True, changes=changes, data_root=f"{folder}/datasets")


def measure(name: str, folder: str, arguments: argparse.Namespace) -> str:
    """One row of the table."""
    from dlgsanet.allocator import keep_freed_memory
    from dlgsanet.startup import spin_shortly

    spin_shortly()  # as commands do, and the next line as `dlgsanet train`
    keep_freed_memory()
    from dlgsanet.training.loop import peak_memory
    from dlgsanet.training.resume import Position
    from dlgsanet.training.run import batches_of, build_model, data_sets

    options = options_of(name, folder, arguments)
    del options["datasets"]["val"]
    train_set, _ = data_sets(options)
    model = build_model(options)
    batches = batches_of(options, train_set, len(train_set), Position())
    on_gpu = options["num_gpu"] > 0
    clock = Clock(on_gpu)
    model.mark = clock.end
    warm_up, measured = (5, arguments.iterations or 10) if on_gpu else (1, arguments.iterations or 3)
    for iteration in range(1, warm_up + measured + 1):
        clock.start()
        batch = next(batches)
        clock.end("data")
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    seconds = [clock.phases[phase][warm_up:] for phase in PHASES]
    total = statistics.median(map(sum, zip(*seconds, strict=True)))
    size, side = len(batch["lq"]), batch["lq"].shape[-1]
    numbers = " | ".join(f"{time:.4f}" for time in (total, *map(statistics.median, seconds)))
    return f"| {name} | {size} of {side}x{side} | {numbers} | {size / total:.1f} | {peak_memory():.2f} |"


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
