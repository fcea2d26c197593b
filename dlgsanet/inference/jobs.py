"""Which files are to be enlarged, and where each result goes."""

import glob
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dlgsanet.errors import UserError
from dlgsanet.pictures.formats import PICTURES, VIDEOS, WRITTEN

STREAM = Path("-")  # standard input or output


@dataclass(frozen=True)
class Job:
    """A picture to read and the file to write; `STREAM` is standard input and output."""

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """Of the source, for messages."""
        return "standard input" if self.source == STREAM else str(self.source)


def find_jobs(inputs: list[str], output: Path, extension: str, suffix: str) -> tuple[list[Job], list[str]]:
    """Jobs for files, folders (with all below them), globs, and ``-``.

    Args:
        inputs: what the user gave.
        output: a file for a single picture, else a folder; ``-`` is standard output.
        extension: of the results, such as ``.png``, or ``auto``: as the source's.
        suffix: put between a result's name and its extension.

    Returns:
        The jobs, and one line for each input that there is not or that has no place to go.

    Raises:
        UserError: several pictures for one file.
    """
    sources: list[tuple[Path, Path]] = []  # the file, and its path below the output folder
    faults: list[str] = []
    for given in inputs:
        found = list(_sources(given, output))
        sources += found
        if not found:
            faults.append(_nothing_found(given))
    if _is_one_file(inputs, output):
        if len(sources) > 1:
            raise UserError(f"-o: {output} is one file, but there are {len(sources)} pictures; give a folder")
        jobs_of_one = [Job(source, output) for source, _ in sources]
        for job in [job for job in jobs_of_one if _takes_its_place(job)]:
            faults.append(f"{job.name}: its result would take its place; give -o another name")
            jobs_of_one.remove(job)
        return jobs_of_one, faults
    if output.suffix.lower() in PICTURES + VIDEOS and not output.is_dir():
        raise UserError(f"-o: cannot write {output.suffix} files; use one of {', '.join(WRITTEN)}, or give a folder")
    jobs: dict[Path, Job] = {}
    for source, below in dict.fromkeys(sources):
        job = Job(source, output / below.with_name(_result_name(below, extension, suffix)))
        if job.target in jobs:
            other = jobs[job.target].name
            faults.append(f"{job.name}: its result would be {job.target}, as that of {other}; give another folder")
        elif _takes_its_place(job):
            faults.append(f"{job.name}: its result would take its place; give --suffix or another folder")
        else:
            jobs[job.target] = job
    return list(jobs.values()), faults


def _takes_its_place(job: Job) -> bool:
    return job.source.exists() and job.target.exists() and job.target.samefile(job.source)


def _is_one_file(inputs: list[str], output: Path) -> bool:
    if output == STREAM:
        return True
    return output.suffix.lower() in WRITTEN and not output.is_dir() and not Path(inputs[0]).is_dir()


def _result_name(below: Path, extension: str, suffix: str) -> str:
    if extension == "auto":
        extension = below.suffix if below.suffix.lower() in WRITTEN else ".png"
    return f"{below.stem}{suffix}{extension}"


def _sources(given: str, output: Path) -> Iterator[tuple[Path, Path]]:
    path = Path(given)
    if path == STREAM:
        yield STREAM, Path("stdin")
    elif path.is_dir():
        for file in _pictures_below(path, output):
            yield file, file.relative_to(path)
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(given):
        for match in sorted(glob.glob(given, recursive=True)):
            yield from _sources(match, output)


def _pictures_below(folder: Path, output: Path) -> Iterable[Path]:
    """Pictures and videos, hidden ones and earlier results left out. (Videos are refused later, by name.)"""
    results_are_inside = output.resolve() != folder.resolve() and output.resolve().is_relative_to(folder.resolve())
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or file.suffix.lower() not in PICTURES + VIDEOS or not file.is_file():
            continue
        if not (results_are_inside and file.resolve().is_relative_to(output.resolve())):
            yield file


def _nothing_found(given: str) -> str:
    if Path(given).is_dir():
        return f"{given}: no pictures in this folder (looked for {', '.join(PICTURES)})"
    return f"{given}: no file matches" if glob.has_magic(given) else f"{given}: there is no such file or folder"


def say(line: str) -> None:
    """Tell the user something: on stderr, since stdout may carry a picture."""
    print(line, file=sys.stderr)
