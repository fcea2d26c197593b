"""Upscale picture files, one after the other; those that fail do not stop the others."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError, counted
from dlgsanet.memory import is_out_of_memory
from dlgsanet.ops import freeze
from dlgsanet.pictures.find_files import STREAM, Job
from dlgsanet.pictures.jpeg_quality import LOW_QUALITY
from dlgsanet.pictures.picture import Picture
from dlgsanet.pictures.reading import content_of, read_picture
from dlgsanet.pictures.upscale import check_result, upscale_picture
from dlgsanet.pictures.writing import encode, write_picture
from dlgsanet.progress import duration, progress_of

EXTENSION_OF = {"JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}  # else .png


@dataclass(frozen=True, kw_only=True)
class FileUpscaler:
    """How files are upscaled.

    Attributes:
        network: in evaluation mode, as `load_model` returns it; it is frozen (`dlgsanet.ops.freeze`).
        report: called with each line for the user.
        outscale, tile, self_ensemble: as for `dlgsanet.upscale`.
        extension: of a result on standard output, such as ``.png``; None: as the input's.
        quality: 1 to 100, for JPEG and WebP.
        dry_run: read everything, write nothing.
        low_qualities: of the JPEGs that were so compressed that weights for clean pictures sharpen their blocks.
    """

    network: DLGSANet
    report: Callable[[str], None]
    outscale: float | None = None
    tile: str | int = "auto"
    self_ensemble: bool = False
    extension: str | None = None
    quality: int = 95
    dry_run: bool = False
    low_qualities: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        freeze(self.network)
        weight = self.network.shallow.weight
        if weight.is_cpu and weight.dtype != torch.float32:
            self.report("--precision: on a CPU fp32 is many times faster")

    def run(self, jobs: list[Job], first: int = 1, count: int | None = None) -> list[str]:
        """Do the jobs, numbered from `first` on, of `count`; return a line for each one that failed."""
        failures = []
        for number, job in enumerate(jobs, first):
            try:
                self._do(job, f"[{number}/{count or len(jobs)}] ")
            except BrokenPipeError:
                raise
            # Whatever went wrong with one picture, the others are still upscaled.
            except Exception as error:
                failures.append(failure_line(job.name, error))
        return failures

    def _do(self, job: Job, counted: str) -> None:
        # Where the caller has closed a stream, the command has opened /dev/null by its number.
        used = [(sys.stdin, 0)] * (job.source == STREAM) + [(sys.stdout, 1)] * (job.target == STREAM)
        if any(getattr(stream, "name", None) == number for stream, number in used):
            raise UserError("standard input or output is closed")
        content = content_of(sys.stdin.buffer, job.name) if job.source == STREAM else None
        picture = read_picture(Path(job.name), content)
        if is_of_low_quality(picture):
            self.low_qualities.append(picture.jpeg_quality or 0)
        extension = self._extension(job, picture)
        height, width = check_result(self.network, picture, self.outscale, job.name, extension)
        line = f"{job.name} -> {'standard output' if job.target == STREAM else job.target}, {width}x{height}"
        if self.dry_run:
            self.report(f"{counted}{line}")
            return
        begun = time.monotonic()
        with progress_of(Path(job.name).name) as progress:
            result = upscale_picture(
                self.network, picture, self.outscale, self.tile, self.self_ensemble, progress=progress
            )
        if job.target == STREAM:
            encoded = encode(result, extension, self.quality)
            try:
                rest = memoryview(encoded)
                while rest:  # with PYTHONUNBUFFERED a call may write a part
                    rest = rest[sys.stdout.buffer.write(rest) or 0 :]
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise UserError(f"cannot write standard output: {error.strerror}") from None
        else:
            write_picture(result, job.target, self.quality)
        self.report(f"{counted}{line}, {duration(time.monotonic() - begun)}")

    def _extension(self, job: Job, picture: Picture) -> str:
        if job.target != STREAM:
            return job.target.suffix
        return self.extension or EXTENSION_OF.get(picture.format or "", ".png")


def failure_line(name: str, error: Exception) -> str:
    """One line about what went wrong with the picture of this name."""
    if isinstance(error, UserError):
        message = error.for_command()
        return message if name in message else f"{name}: {message}"
    if isinstance(error, OSError) and error.strerror:  # a full disk
        return f"{name}: {error.strerror}"
    reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
    return f"{name}: {' '.join(reason.split())}"


def is_of_low_quality(picture: Picture) -> bool:
    """Whether the picture is a JPEG so compressed that weights for clean pictures sharpen its blocks."""
    return picture.jpeg_quality is not None and picture.jpeg_quality <= LOW_QUALITY


def suggestion(qualities: list[int], weights: str) -> str:
    """A line that names weights for JPEGs of these qualities."""
    low, high = min(qualities), max(qualities)
    of = f"of quality {low}" if low == high else f"of qualities {low} to {high}"
    count = counted(len(qualities), "JPEG")
    return f"{count} {of}; the weights {weights} are made for compressed photographs (--weights {weights})"
