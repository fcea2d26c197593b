"""`dlgsanet upscale`: pictures and folders in, enlarged pictures out."""

import argparse
from contextlib import suppress
from pathlib import Path

from dlgsanet.inference.jobs import STREAM, find_jobs, say
from dlgsanet.pictures.formats import WRITTEN

EXAMPLES = """\
examples:
  dlgsanet upscale photo.jpg -o photo_x2.png
  dlgsanet upscale photos/ -o enlarged/ --scale 4 --ext png
  dlgsanet upscale scan.tif -o scan_x3.tif --outscale 3 --self-ensemble
  cat photo.png | dlgsanet upscale - -o - > photo_x2.png
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dlgsanet upscale",
        description="Enlarge pictures: PNG, JPEG, WebP, TIFF, BMP; 8 or 16 bits, gray, palette, transparency.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders (with all below them), globs, or - for stdin")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="a file, a folder, or - for stdout")
    add("--scale", type=int, choices=(2, 3, 4), help="the network's enlargement (default: what the weights have)")
    add("-s", "--outscale", type=_factor, metavar="S", help="resize the result to S times the input")
    add("--weights", default="Tiny", metavar="FILE|NAME", help="a .safetensors or .pth file, or Tiny, Light, Large")
    add("-t", "--tile", type=_tile, default="auto", metavar="auto|exact|N", help="exact: the whole picture at once; "
        "N: tiles that keep N pixels a side; auto (default): exact if it fits into memory, else tiles")  # fmt: skip
    add("--self-ensemble", action="store_true", help="average 8 flips and turns: 8 times the work, slightly better")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: fp32; the others are for GPUs")
    add("--ext", choices=("auto", *(e[1:] for e in WRITTEN)), default="auto", help="format of results in a folder or "
        "on stdout (default: as the input's)")  # fmt: skip
    add("--suffix", default="", help="put after the names of results, before the extension")
    add("--quality", type=_quality, default=95, metavar="1-100", help="of JPEG and WebP results (default: 95)")
    add("--overwrite", action="store_true", help="replace results that are there already (default: skip those)")
    add("--dry-run", action="store_true", help="read everything, tell what would be done, write nothing")
    return parser


def _factor(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) <= 64:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, at most 64")


def _tile(text: str) -> str | int:
    if text in ("auto", "exact"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not auto, exact, or a number of pixels")


def _quality(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 100:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")


def main(argv: list[str]) -> int:
    """Exit code 0 if every picture was enlarged or there already, 2 if any failed, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    extension = "auto" if args.ext == "auto" else f".{args.ext}"
    jobs, failures = find_jobs(args.inputs, args.output, extension, args.suffix)
    waiting = [job for job in jobs if args.overwrite or job.target == STREAM or not job.target.exists()]
    skipped = len(jobs) - len(waiting)
    if skipped:
        say(f"{skipped} there already, skipped (--overwrite replaces them)")
    try:
        if waiting:
            from dlgsanet.inference.batch import Batch  # loads torch: not for --help or a misspelt option

            failures += Batch(args).run(waiting)
    except KeyboardInterrupt:
        say("dlgsanet: interrupted; results written so far are whole")
        return 130
    for failure in failures:
        say(f"dlgsanet: error: {failure}")
    return 2 if failures else 0
