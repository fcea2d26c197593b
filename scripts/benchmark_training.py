"""Time of a training iteration, split into its phases, and peak memory, of the shipped option files' networks.

  python scripts/benchmark_training.py                                   the nine networks, as published
  python scripts/benchmark_training.py --networks Tiny_x2 --batch 4 --patch 32 --iterations 5
  python scripts/benchmark_training.py --set train:precision=bf16 train:compile=true

Trains on scikit-image's photographs with the loop's own parts. Times are medians over the iterations after the
first three; waiting for data is what the loop waits for, not what the workers work. Memory is the GPU's peak, or
the peak of the process. Each network runs in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

PHASES = ("data", "forward", "backward", "step")
NETWORKS = [f"{size}_x{scale}" for size in ("Tiny", "Light", "Large") for scale in (2, 3, 4)]
WARM_UP = 3


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--batch", type=int, help="patches in a batch; default: the option file's")
    parser.add_argument("--patch", type=int, help="side of an LR patch; default: the option file's")
    parser.add_argument("--workers", type=int, default=2, help="data workers; default: %(default)s")
    parser.add_argument("--iterations", type=int, default=10, help="that are measured; default: %(default)s")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="more changes of the options")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        header = apart(prepare, folder, sorted({int(name[-1]) for name in arguments.networks}))
        print(f"{header}; seconds an iteration, images a second, GB\n")
        print("| network | batch | iteration | data | forward | backward | step | images/s | memory |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in arguments.networks:
            print(apart(measure, name, folder, arguments), flush=True)


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
    from dlgsanet.options import read_options

    size, scale = name.split("_x")
    (file,) = REPOSITORY.glob(f"options/train/train_SISR_ClassicDIV2K_{size}_*B_DLGSANet_SRx{scale}_scratch*.yml")
    changes = [f"datasets:train:num_worker_per_gpu={arguments.workers}", "num_gpu=auto", *arguments.set]
    if arguments.batch:
        changes.append(f"datasets:train:batch_size_per_gpu={arguments.batch}")
    if arguments.patch:
        changes.append(f"datasets:train:gt_size={arguments.patch * int(scale)}")
    given = SimpleNamespace(opt=str(file), force_yml=changes, data_root=f"{folder}/datasets", debug=False)
    for key in ("datasets:val:dataroot_gt", "datasets:val:dataroot_lq"):  # not used, but looked for
        given.force_yml.append(f"{key}={folder}")
    return read_options(given, is_train=True)


def measure(name: str, folder: str, arguments: argparse.Namespace) -> str:
    """One row of the table."""
    import torch

    from dlgsanet.training.loop import peak_memory
    from dlgsanet.training.run import batches_of, build_model, data_sets
    from dlgsanet.training.state import Position

    options = options_of(name, folder, arguments)
    del options["datasets"]["val"]
    train_set, _ = data_sets(options)
    model = build_model(options)
    batches = batches_of(options, train_set, len(train_set), Position())
    clock = Clock(torch.cuda.is_available())
    model.mark = clock.end
    for iteration in range(1, WARM_UP + arguments.iterations + 1):
        clock.start()
        batch = next(batches)
        clock.end("data")
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    medians = [statistics.median(clock.phases[phase][WARM_UP:]) for phase in PHASES]
    total = statistics.median(map(sum, zip(*(clock.phases[phase][WARM_UP:] for phase in PHASES), strict=True)))
    size = len(batch["lq"])
    numbers = " | ".join(f"{seconds:.4f}" for seconds in (total, *medians))
    return f"| {name} | {size} | {numbers} | {size / total:.1f} | {peak_memory():.2f} |"


if __name__ == "__main__":
    main()
