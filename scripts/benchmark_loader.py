"""Batches per second of our training data set and of BasicSR's `PairedImageDataset` from PNG sub-images.

python scripts/benchmark_loader.py --workers 0 1 2
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from skimage import data as photographs
from torch.utils.data import DataLoader, Dataset, RandomSampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
from basicsr.data.paired_image_dataset import PairedImageDataset
from dlgsanet.cli import run
from dlgsanet.commands.arguments import whole_number
from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.images import png_bytes
from dlgsanet.data.layout import lay_out
from dlgsanet.data.parallel import usable_cores
from dlgsanet.data.sources import images_of
from dlgsanet.data.subimages import Recipe, cut
from dlgsanet.files import write_whole


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=whole_number(0), nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--scale", type=whole_number(), default=4)
    parser.add_argument("--lq-size", type=whole_number(), default=48)
    parser.add_argument("--batch", type=whole_number(), default=16)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement; default: %(default)s")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # without workers too, as in workers
    size = arguments.lq_size
    print(
        f"{usable_cores()} cores; batches a second of {arguments.batch} LR patches {size}x{size} at x{arguments.scale}"
    )
    print("| workers | PairedImageDataset | ours, in memory | ours, cache file | ours in memory / PairedImageDataset |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sets = data_sets(Path(folder), arguments.scale, arguments.lq_size)
        for workers in arguments.workers:
            theirs, memory, file = (batches_a_second(one, arguments.batch, workers, arguments.seconds) for one in sets)
            print(f"| {workers} | {theirs:.1f} | {memory:.0f} | {file:.0f} | {memory / theirs:.1f} |", flush=True)


def data_sets(folder: Path, scale: int, lq_size: int) -> tuple[Dataset, Dataset, Dataset]:
    """BasicSR's, ours in memory and ours in a file, of four photographs of DIV2K's size."""
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = getattr(photographs, name)()
        image = np.pad(image, ((0, 1356 - len(image)), (0, 2040 - image.shape[1]), (0, 0)), "symmetric")
        write_whole(folder / f"originals/{name}.png", png_bytes(image))
    root = lay_out(images_of(folder / "originals"), folder / "Photos", [scale]).root
    cut(root, [scale], Recipe())
    common = {
        "phase": "train",
        "scale": scale,
        "gt_size": lq_size * scale,
        "use_hflip": True,
        "use_rot": True,
        "io_backend": {"type": "disk"},
    }
    pieces = {"dataroot_gt": str(root / "HR_sub"), "dataroot_lq": str(root / f"LR_bicubic/X{scale}_sub")}
    whole = {
        "dataroot_gt": str(root / "HR"),
        "dataroot_lq": str(root / f"LR_bicubic/X{scale}"),
        "filename_tmpl": f"{{}}x{scale}",
        "manual_seed": 0,
        "patches_per_image": 100_000,
    }
    return (
        PairedImageDataset({**common, **pieces}),
        CachedPairedImageDataset({**common, **whole}),
        CachedPairedImageDataset({**common, **whole, "cache_dir": str(folder / "cache")}),
    )


def batches_a_second(dataset: Dataset, batch: int, workers: int, seconds: float) -> float:
    """Counted after a first ten batches, in which workers start and files come into memory."""
    sampler = RandomSampler(
        dataset, replacement=True, num_samples=1_000_000 * batch
    )  # one epoch, however long it takes
    batches = iter(DataLoader(dataset, batch, sampler=sampler, num_workers=workers))
    for _ in range(10):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
