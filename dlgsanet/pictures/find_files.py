"""Find the files to upscale, and where each result goes. Imports nothing heavy, so that faults are reported at once."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from dlgsanet.errors import ArgumentError, UserError
from dlgsanet.files import ignores_case
from dlgsanet.pictures.formats import OTHER_PICTURES, PICTURES, VIDEOS, WRITTEN

STREAM = Path("-")  # standard input or output
DEFAULT_OUTPUT = Path("results")


@dataclass(frozen=True)
class Job:
    """A picture to read and the file to write; `STREAM` is standard input and output."""

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """Name of the source, for messages."""
        return "standard input" if self.source == STREAM else str(self.source)


@dataclass
class Found:
    """What is to be upscaled, and what is not.

    Attributes:
        jobs: what is to be done.
        faults: one line for each input that does not exist, folder that cannot be read, or picture that has no usable
            place for its result.
        results: pictures that are results of an earlier run, and are left out.
        other_files: extension, or another kind -> how many in folders are no pictures.
    """

    jobs: list[Job] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)


def find_files(inputs: list[str], output: Path, extension: str | None = None, suffix: str = "") -> Found:
    """Jobs for files, folders (with everything below them), globs, and ``-``.

    Args:
        inputs: what the user gave.
        output: a file for a single picture, else a folder; ``-`` is standard output.
        extension: of the results, such as ``.png``; None: as the source's.
        suffix: put between a result's name and its extension. A source below the output folder with that
            suffix in its name counts as a result of an earlier run and is left out.

    Raises:
        UserError: several pictures for one file; a suffix or another extension for a file whose name is given.
    """
    found = Found()
    # By the place of the file, however its folder is spelled or linked: the file as the first input names it, and its
    # path below the output folder.
    named: dict[Path, tuple[Path, Path]] = {}
    for given in inputs:
        faults = len(found.faults)
        here = list(_sources(given, output, found))
        for source, below in here:
            named.setdefault(Path(os.path.realpath(source.parent), source.name), (source, below))
        if not here and len(found.faults) == faults:
            last = len(inputs) > 1 and given == inputs[-1]
            named_as_result = last and output == DEFAULT_OUTPUT and Path(given).suffix.lower() in WRITTEN
            found.faults.append(_nothing_found(given) + "; -o names the result" * named_as_result)
    sources = dict(named.values())
    if _is_one_file(inputs, output):
        if len(sources) > 1:
            raise UserError(f"-o: {output} is one file, but there are {len(sources)} pictures; give a folder")
        if suffix:
            raise ArgumentError("suffix", f"is for results in a folder; -o names the file {output}")
        if output != STREAM and extension and WRITTEN[extension] != WRITTEN[output.suffix.lower()]:
            raise ArgumentError("ext", f"{extension[1:]} does not fit the file {output} of -o; leave one of them out")
        for source in sources:
            _add(found, Job(source, output), "give -o another name")
        return found
    if output.suffix.lower() in WRITTEN and not os.path.isdir(output):
        raise UserError(f"-o: {output} is the name of a file, but {inputs[0]} is a folder; give a folder")
    if output.suffix.lower() in PICTURES + VIDEOS + OTHER_PICTURES and not os.path.isdir(output):
        raise UserError(f"-o: cannot write {output.suffix} files; use one of {', '.join(WRITTEN)}, or give a folder")
    _add_for_folder(found, sources, output, extension, suffix)
    return found


def _add_for_folder(
    found: Found, sources: Mapping[Path, Path], output: Path, extension: str | None, suffix: str
) -> None:
    key = str.lower if ignores_case(output) else str
    jobs: dict[str, Job] = {}
    found.results = [source for source in sources if suffix and _is_result(source, output, suffix)]
    results = set(found.results)
    pictures = {os.path.realpath(source) for source in sources if source not in results}
    places = {
        source: below.with_name(result_name(below, extension, suffix))
        for source, below in sources.items()
        if source not in results
    }
    shared = Counter(key(str(place)) for place in places.values())
    for source, place in places.items():
        if shared[key(str(place))] > 1 and source.suffix != place.suffix:  # logo.gif next to logo.png: logo.gif.png
            place = place.with_name(f"{source.name}{suffix}{place.suffix}")
        job = Job(source, output / place)
        if os.path.realpath(job.target) in pictures and not same_file(source, job.target):
            found.faults.append(
                f"{job.name}: its result would replace {job.target}, given too; give --suffix or another folder"
            )
        elif key(str(job.target)) in jobs:
            other = jobs[key(str(job.target))].name
            found.faults.append(f"{job.name}: its result would be {job.target}, as that of {other}; use another folder")
        else:
            jobs[key(str(job.target))] = job
            _add(found, job, "give --suffix or another folder")


def _add(found: Found, job: Job, hint: str) -> None:
    if same_file(job.source, job.target):
        found.faults.append(f"{job.name}: its result would replace it; {hint}")
    else:
        found.jobs.append(job)


# The functions of os.path return False where those of pathlib raise: names that are too long, folders without access.
def same_file(one: Path, other: Path) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _is_result(source: Path, output: Path, suffix: str) -> bool:
    return source.stem.endswith(suffix) and _is_below(source, output)


def _is_below(file: Path, folder: Path) -> bool:
    return os.path.realpath(file).startswith(os.path.join(os.path.realpath(folder), ""))


def _is_one_file(inputs: list[str], output: Path) -> bool:
    if output == STREAM:
        return True
    return output.suffix.lower() in WRITTEN and not os.path.isdir(output) and not os.path.isdir(inputs[0])


def result_name(below: Path, extension: str | None, suffix: str) -> str:
    """Name of the result of a file: with the suffix, and the file's extension where that can be written, else PNG's."""
    if extension is None:
        extension = below.suffix if below.suffix.lower() in WRITTEN else ".png"
    return f"{below.stem}{suffix}{extension}"


def _sources(given: str, output: Path, found: Found) -> Iterator[tuple[Path, Path]]:
    path = Path(given)
    if path == STREAM:
        yield STREAM, Path("stdin")
    elif os.path.isdir(path):
        for file in _pictures_below(path, output, found):
            yield file, file.relative_to(path)
    elif os.path.lexists(path):
        yield path, Path(path.name)
    elif glob.has_magic(given):
        top = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        results_are_inside = os.path.isdir(output) and _is_below(output, top)
        # The shortest first: links to folders give a file longer names.
        for match in sorted(glob.glob(given, recursive=True), key=lambda match: (match.count(os.sep), match)):
            if not (results_are_inside and _is_below(Path(match, "x"), output)):
                yield from _sources(match, output, found)


def _pictures_below(folder: Path, output: Path, found: Found) -> Iterator[Path]:
    """Pictures and videos; hidden files and earlier results are left out. (Videos are refused later, by name.)"""

    def refuse(error: OSError) -> None:
        found.faults.append(f"{error.filename}: {error.strerror}")

    results, results_are_inside = os.path.realpath(output), _is_below(output, folder)
    for parent, folders, names in os.walk(folder, onerror=refuse):
        # They are not followed: they may lead around in circles.
        found.other_files.update("link to a folder" for name in folders if os.path.islink(os.path.join(parent, name)))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not (results_are_inside and os.path.realpath(os.path.join(parent, name)) == results)
        )
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            file = Path(parent, name)
            if os.path.exists(file) and not os.path.isfile(file):  # to read a pipe would take forever
                found.other_files["pipe or device"] += 1
            elif extension in PICTURES + VIDEOS:
                yield file
            else:
                found.other_files[extension or "no extension"] += 1


def _nothing_found(given: str) -> str:
    if os.path.isdir(given):
        return f"{given}: no pictures in this folder (looked for {', '.join(PICTURES)})"
    if glob.has_magic(given):
        return f"{given}: no file matches"
    try:
        os.lstat(given)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            return f"{given}: {error.strerror}"
    except ValueError as error:  # a null character
        return f"{given!r}: {error}"
    return f"{given}: there is no such file or folder"
