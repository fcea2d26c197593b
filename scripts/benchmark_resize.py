"""The speed of making LR images: ours next to BasicSR's `imresize`, on one image, in one run.

python scripts/benchmark_resize.py [IMAGE]      a photograph of DIV2K's size by default
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from skimage import data as photographs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dlgsanet.basicsr_compat  # noqa: F401, I001  # before BasicSR
from basicsr.utils.matlab_functions import imresize as basicsr_imresize
from dlgsanet.cli import run
from dlgsanet.commands.arguments import whole_number
from dlgsanet.data.images import read_image
from dlgsanet.data.parallel import for_each, usable_cores
from dlgsanet.data.resize import downscale, imresize


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--repeats", type=whole_number(), default=5, help="the fastest counts; default: %(default)s")
    arguments = parser.parse_args(argv)
    image = read_image(arguments.image) if arguments.image else mirrored(photographs.astronaut(), 1356, 2040)
    cores = usable_cores()
    print(f"{image.shape[1]}x{image.shape[0]} pixels, {cores} cores; Mpixel of HR image a second")
    print(f"| | ours, one core | ours, {cores} cores | BasicSR | one core / BasicSR | {cores} cores / BasicSR |")
    print("|---|---|---|---|---|---|")
    for scale in (2, 3, 4):
        one, all_cores, theirs = speeds(image, scale, arguments.repeats, cores)
        print(
            f"| x{scale} | {one:.0f} | {all_cores:.0f} | {theirs:.1f} | {one / theirs:.1f} | {all_cores / theirs:.1f} |"
        )


def speeds(image: np.ndarray, scale: int, repeats: int, cores: int) -> tuple[float, float, float]:
    """Mpixel/s of ours on one core, of ours on all cores (several images), and of BasicSR's with PyTorch's threads."""
    megapixels = image.shape[0] * image.shape[1] / 1e6
    scaled = image / np.float32(255)
    several = [image] * (4 * cores)
    assert np.abs(imresize(image, 1 / scale) - basicsr_imresize(scaled, 1 / scale) * 255).mean() < 0.5
    return (
        megapixels / fastest(lambda: downscale(image, scale), repeats),
        len(several) * megapixels / fastest(lambda: for_each(lambda one: downscale(one, scale), several, ""), repeats),
        megapixels / fastest(lambda: basicsr_imresize(scaled, 1 / scale), repeats),
    )


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def mirrored(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A larger image, of mirrored copies."""
    return np.pad(image, ((0, height - len(image)), (0, width - image.shape[1]), (0, 0)), "symmetric")


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
