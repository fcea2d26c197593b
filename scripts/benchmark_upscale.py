"""Exact and tiled upscaling of a big photograph: time, peak memory, and how far tiles are from exact.

python scripts/benchmark_upscale.py --weights Tiny --size 1920x1080 --ways exact 1024 512 [--photo FILE]

Without --photo, scikit-image's photographs are laid side by side until the size is filled. Every way runs in a process
of its own; the peak is of resident memory. PSNR is over all pixels and channels, against exact. The step at tile
borders is the mean difference of the two pixels on either side, of tiles over exact: 1 is no step.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dlgsanet.cli import run as with_clear_errors
from dlgsanet.commands.arguments import add_size, whole_number
from dlgsanet.errors import UserError
from dlgsanet.files import check_can_write, write_whole


def way_of(text: str) -> str:
    return text if text in ("exact", "auto") else str(whole_number()(text))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="Tiny")
    parser.add_argument("--scale", type=int)
    add_size(parser, "--size", (1920, 1080), "of the input", least=16)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--ways", type=way_of, nargs="+", metavar="exact|auto|N", default=["exact", "1024", "512"])
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # of one way: where its process leaves it
    args = parser.parse_args(argv)
    if args.result:
        run(args)
        return 0
    if args.markdown:
        check_can_write(args.markdown)
    rows = ["| way | time, s | peak memory, GB | PSNR to exact, dB | largest difference, levels | step at borders |"]
    rows += ["|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        exact = None
        for way in args.ways:
            result = Path(folder, f"{way}.npy")
            one = [sys.executable, __file__, "--ways", way, "--result", str(result)]
            one += ["--size", "{}x{}".format(*args.size)]
            one += ["--weights", args.weights, *(["--scale", str(args.scale)] if args.scale else [])]
            one += ["--photo", str(args.photo)] if args.photo else []
            done = subprocess.run(one, stdout=subprocess.PIPE)
            if done.returncode:  # it has said why
                return done.returncode
            measured = json.loads(done.stdout)
            pixels = np.load(result, mmap_mode="r")
            exact = pixels if way == "exact" else exact
            row = f"| {way} | {measured['seconds']:.1f} | {measured['bytes'] / 1e9:.2f} | "
            rows.append(row + ("| | |" if exact is None else compared(pixels, exact, measured)))
            print(rows[-1], file=sys.stderr)
    table = "\n".join(rows) + "\n"
    print(table)
    if args.markdown:
        write_whole(args.markdown, table.encode())
    return 0


def run(args: argparse.Namespace) -> None:
    from dlgsanet import load_model
    from dlgsanet.pictures.tile_layout import tiles_of
    from dlgsanet.pictures.upscale_pixels import upscale_pixels

    network = load_model(args.weights, args.scale)
    width, height = args.size
    pixels = photograph(args.photo, height, width)
    tile = args.ways[0] if args.ways[0] in ("exact", "auto") else int(args.ways[0])
    began = time.perf_counter()
    np.save(args.result, upscale_pixels(network, pixels, tile))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    spans = tiles_of(network, height, width, tile if isinstance(tile, int) else None)
    borders = [[span.start * network.upscale for span in axis[1:]] for axis in spans]
    print(json.dumps({"seconds": seconds, "bytes": peak, "borders": borders}))


def photograph(path: Path | None, height: int, width: int) -> np.ndarray:
    """RGB uint8 [height, width, 3]."""
    if path:
        from dlgsanet.data.images import read_rgb

        pixels = read_rgb(path)[:height, :width]
        if pixels.shape[:2] != (height, width):
            smaller = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"--photo: {path} is smaller than {width}x{height}; give --size {smaller}")
        return pixels
    import skimage.data

    strip = np.hstack(
        [image[:300, :400] for image in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())]
    )
    return np.tile(strip, (-(-height // 300), -(-width // strip.shape[1]), 1))[:height, :width]


def compared(pixels: np.ndarray, exact: np.ndarray, measured: dict) -> str:
    """PSNR of 8-bit pixels, the largest difference, and how much larger steps at tile borders are."""
    square, largest = 0.0, 0
    for top in range(0, len(pixels), 256):
        difference = pixels[top : top + 256].astype(int) - exact[top : top + 256]
        square += float((difference**2).sum())
        largest = max(largest, int(np.abs(difference).max()))
    psnr = 10 * np.log10(255**2 * pixels.size / square) if square else float("inf")
    steps = [[np.abs(np.diff(p.take((b - 1, b), axis).astype(int), axis=axis)).mean() for p in (pixels, exact)]
             for axis, borders in enumerate(measured["borders"]) for b in borders]  # fmt: skip
    step = f"{np.mean([s[0] for s in steps]) / np.mean([s[1] for s in steps]):.4f}" if steps else ""
    return f"{psnr:.2f} | {largest} | {step} |"


if __name__ == "__main__":
    sys.exit(with_clear_errors("__main__:main", sys.argv[1:]))
