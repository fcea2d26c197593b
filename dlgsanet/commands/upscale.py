"""`dlgsanet upscale`: upscale pictures and folders of pictures."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, add_shard, add_weights, part_of_name, whole_number
from dlgsanet.errors import UserError, counted, one_line
from dlgsanet.files import check_can_write
from dlgsanet.pictures.bounds import LARGEST_FACTOR
from dlgsanet.pictures.find_files import DEFAULT_OUTPUT, STREAM, Found, Job, find_files
from dlgsanet.pictures.formats import WRITTEN
from dlgsanet.pictures.shares import upscale_on_devices
from dlgsanet.startup import quick_imports

DESCRIPTION = """\
Upscale pictures: PNG, JPEG, WebP, TIFF, BMP, AVIF, HEIC; 8 or 16 bits per
channel; gray, palette, transparency.
"""

EXAMPLES = """\
examples:
  dlgsanet upscale photo.jpg -o photo_x2.png
  dlgsanet upscale photos/ -o upscaled/ --scale 4 --ext png
  dlgsanet upscale scan.tif -o scan_x3.tif --outscale 3 --self-ensemble
  cat photo.png | dlgsanet upscale - -o - > photo_x2.png
"""


def parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "dlgsanet upscale",
        usage="dlgsanet upscale INPUT [INPUT ...] [-o OUT] [option ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="files, folders (with everything below them), globs, or - for stdin")
    add("-i", "--input", nargs="+", action="extend", default=[], metavar="INPUT", help="the same as INPUT")
    add("-o", "--output", type=Path, default=DEFAULT_OUTPUT, metavar="OUT", help="a file, a folder, or - for stdout; "
        "default: the folder results")  # fmt: skip
    add_weights(parser)
    add("-s", "--outscale", type=_factor, metavar="S", help="resize the result to S times the input")
    add("-t", "--tile", type=_tile, default="auto", metavar="TILE", help="exact: the whole picture at once; a "
        "number: tiles of N pixels per side; auto (default): exact if it fits, else tiles")  # fmt: skip
    add("--self-ensemble", action="store_true", help="average over 8 flips and transposes: 8 times the work, slightly "
        "better")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, mps, xpu, or several that share the pictures: cuda:0,cuda:1; default: all "
        "GPUs for a folder, the first for a picture, the CPU without one")  # fmt: skip
    add_shard(parser)
    add("-g", "--gpu-id", dest="device", type=_gpu, metavar="N", help="the same as --device cuda:N")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of weights and features; fp16 "
        "and bf16 are for GPUs; default: fp32")  # fmt: skip
    add("--fp32", dest="precision", action="store_const", const="fp32", help="the same as --precision fp32")
    add("--ext", choices=("auto", *(e[1:] for e in WRITTEN)), default="auto", help="format of results in a folder or "
        "on stdout; default: that of the input")  # fmt: skip
    add("--suffix", default="", type=part_of_name, help="put after the names of results, before the extension")
    add("--quality", type=whole_number(1, 100), default=95, metavar="Q", help="1 to 100, for JPEG and WebP; default: "
        "95")  # fmt: skip
    add("--overwrite", action="store_true", help="replace results that exist already; default: skip them")
    add("--dry-run", action="store_true", help="read everything, report what would be done, write nothing")
    return parser


def _factor(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) <= LARGEST_FACTOR:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, at most {LARGEST_FACTOR}")


def _tile(text: str) -> str | int:
    if text in ("auto", "exact"):
        return text
    with suppress(argparse.ArgumentTypeError):
        return whole_number(0)(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not auto, exact, or a number of pixels")


def _gpu(text: str) -> str:
    return f"cuda:{whole_number(0)(text)}"


def main(argv: list[str]) -> int:
    """Exit code 0 if every picture was upscaled or existed already, 2 if any failed, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    inputs = [*arguments.inputs, *arguments.input]
    if not inputs:
        raise UserError("no input; give files, folders, globs, or - for standard input")
    extension = None if arguments.ext == "auto" else f".{arguments.ext}"
    found = find_files(inputs, arguments.output, extension, arguments.suffix)
    failures = found.faults
    if arguments.shard:
        # By the place below OUT: jobs may spell OUT differently, or reach it by another path.
        found.jobs = [job for job in found.jobs if arguments.shard.has(job.target.relative_to(arguments.output))]
        _say(f"part {arguments.shard.part} of {arguments.shard.parts}: {counted(len(found.jobs), 'picture')}")
    waiting: list[Job] = []
    skipped: list[Job] = []
    for job in found.jobs:
        is_there = job.target != STREAM and os.path.isfile(job.target)
        (skipped if is_there and not arguments.overwrite else waiting).append(job)
    if len(skipped) == 1:
        _say(f"{skipped[0].target} is there already, skipped (--overwrite replaces it)")
    elif skipped:
        _say(f"{len(skipped)} results are there already, skipped (--overwrite replaces them)")
    waiting = list(_writable(waiting, failures))
    try:
        if waiting:
            with quick_imports():
                from dlgsanet.inference.loading import load_model  # loads torch: not for --help or a misspelt option
                from dlgsanet.inference.weights import find_weights, for_jpeg
                from dlgsanet.pictures.upscale_files import FileUpscaler, suggestion

            a = arguments
            weights = find_weights(a.weights, a.scale, a.outscale or 2)
            how = {
                "report": _say,
                "outscale": a.outscale,
                "tile": a.tile,
                "self_ensemble": a.self_ensemble,
                "extension": extension,
                "quality": a.quality,
                "dry_run": a.dry_run,
            }
            devices = _devices(a.device, waiting)
            if len(devices) > 1:
                options = {"weights": weights, "scale": a.scale, "precision": a.precision, **how}
                failed, qualities = upscale_on_devices([str(device) for device in devices], options, waiting)
            else:
                upscaler = FileUpscaler(network=load_model(weights, a.scale, devices[0], a.precision), **how)
                failed, qualities = upscaler.run(waiting), upscaler.low_qualities
            failures += failed
            if qualities and (better := for_jpeg(weights, a.weights)):
                _say(suggestion(qualities, better))
    except KeyboardInterrupt:
        _say("dlgsanet: interrupted; results written so far are whole")
        return 130
    _report_left_out(found, arguments.suffix)
    for failure in failures:
        _say(f"dlgsanet: error: {failure}")
    return 2 if failures else 0


def _writable(jobs: list[Job], faults: list[str]) -> Iterator[Job]:
    """The jobs with results that can be written; a line for each of the others is added to `faults`."""
    for job in jobs:
        try:
            if job.target != STREAM:
                check_can_write(job.target)
            yield job
        except UserError as error:
            faults.append(f"{job.name}: {error}")


def _report_left_out(found: Found, suffix: str) -> None:
    if found.results:
        _say(f"left out, results of an earlier run with {suffix} in the name: {len(found.results)}")
    if found.other_files:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.other_files.items()))
        _say(f"left out, not pictures: {kinds}")


def _devices(names: str | None, jobs: list[Job]) -> list[str | None]:
    """The devices that share the pictures; None is the default device."""
    from dlgsanet.device import find_device, preferred_gpus

    if names is not None:
        found: list[str | None] = [str(find_device(name)) for name in names.split(",")] if "," in names else [names]
    else:
        gpus = preferred_gpus()
        found = [str(gpu) for gpu in gpus] if len(gpus) > 1 else [None]
    alone = any(STREAM in (job.source, job.target) for job in jobs)  # streams belong to this process
    return found[:1] if alone else found[: len(jobs)]


def _say(line: str) -> None:
    """Report a line on stderr, since stdout may carry a picture."""
    # With its end: `print` would write that separately, and several processes share the stream.
    print(f"{one_line(line)}\n", end="", file=sys.stderr)
