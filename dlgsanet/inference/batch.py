"""The pictures of one run of `dlgsanet upscale`, one after the other; those that fail do not stop the others."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dlgsanet.device import is_out_of_memory
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from dlgsanet.inference.enlarge import enlarge
from dlgsanet.inference.jobs import STREAM, Job, say
from dlgsanet.inference.loading import load_model
from dlgsanet.inference.upscale import enlarge_picture, result_size
from dlgsanet.pictures.picture import Picture
from dlgsanet.pictures.reading import read_picture
from dlgsanet.pictures.writing import check_format, encode

LONG_PICTURE = 10  # seconds from which the time that a picture will take is told before
SAMPLE = np.zeros((128, 128, 3), np.uint8)  # tells how fast it goes here


class Batch:
    """One run of the command: its network, and how fast that goes here."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.network = load_model(args.weights, args.scale, args.device, args.precision, outscale=args.outscale or 2)
        self.seconds_per_pixel: float | None = None

    def run(self, jobs: list[Job]) -> list[str]:
        """Do the jobs one after the other; a line for each that failed."""
        failures = []
        for number, job in enumerate(jobs, 1):
            try:
                self._do(job, f"[{number}/{len(jobs)}] ")
            except BrokenPipeError:
                raise
            except UserError as error:
                failures.append(str(error) if job.name in str(error) else f"{job.name}: {error}")
            # One picture must not keep the others from being enlarged, whatever went wrong with it.
            except Exception as error:
                reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
                failures.append(f"{job.name}: {' '.join(reason.split())}")
        return failures

    def _do(self, job: Job, counted: str) -> None:
        content = sys.stdin.buffer.read() if job.source == STREAM else None
        picture = read_picture(Path(job.name), content)
        extension = self._extension(job, picture)
        height, width = result_size(self.network, picture, self.args.outscale)
        check_format(job.name, extension, (height, width), picture.alpha is not None)
        told = f"{job.name} -> {'standard output' if job.target == STREAM else job.target}, {width}x{height}"
        if self.args.dry_run:
            say(f"{counted}{told}")
            return
        self._estimate(job, picture)
        begun = time.monotonic()
        with _bar(job.name) as bar:
            result = enlarge_picture(
                self.network, picture, self.args.outscale, self.args.tile, self.args.self_ensemble, bar.update
            )
        content = encode(result, extension, self.args.quality)
        if job.target == STREAM:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            write_whole(job.target, content)
        say(f"{counted}{told}, {_duration(time.monotonic() - begun)}")

    def _extension(self, job: Job, picture: Picture) -> str:
        if job.target != STREAM:
            return job.target.suffix
        if self.args.ext != "auto":
            return f".{self.args.ext}"
        same = {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
        return same.get(picture.format or "", ".png")

    def _estimate(self, job: Job, picture: Picture) -> None:
        """Tell how long a picture will take if that is long, from the time that a small one takes."""
        height, width = picture.size
        if height * width < 16 * SAMPLE.size / 3:
            return
        if self.seconds_per_pixel is None:
            enlarge(self.network, SAMPLE)  # what is done once only
            begun = time.monotonic()
            enlarge(self.network, SAMPLE)
            self.seconds_per_pixel = (time.monotonic() - begun) / (SAMPLE.size / 3)
        passes = (8 if self.args.self_ensemble else 1) * (1 if picture.alpha is None else 2)
        seconds = self.seconds_per_pixel * height * width * passes
        if seconds > LONG_PICTURE:
            say(f"{job.name}: {height * width / 1e6:.1f} megapixels, about {_duration(seconds)}")


def _bar(name: str) -> tqdm:
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    return tqdm(total=1.0, desc=Path(name).name, bar_format=form, leave=False, disable=None)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
