"""Decoded images, each decoded once, in memory or in one memory-mapped file that all processes share."""

import errno
import fcntl
import hashlib
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from dlgsanet.data.images import read_rgb
from dlgsanet.data.parallel import for_each, in_one_line
from dlgsanet.data.sources import Source
from dlgsanet.errors import UserError
from dlgsanet.files import written_aside
from dlgsanet.memory import free_memory


@dataclass
class PixelCache:
    """The pixels of many images, one after the other, each uint8 RGB `[3, H, W]`, then a checksum of each, uint32.

    A file in a folder may be damaged: each process checks an image when it first reads it, and decodes it again.
    """

    sources: Sequence[Source]
    shapes: list[tuple[int, int]]
    content: np.ndarray  # the whole file
    file: Path | BinaryIO  # in a folder; or in memory, where it has no name

    def __post_init__(self) -> None:
        self.starts = _starts(self.shapes)
        self.unchecked = np.full(len(self.shapes), isinstance(self.file, Path))
        # Of all processes: whether the user knows that the file was damaged.
        self.reported = torch.zeros((), dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> np.ndarray:
        """A view on one image, uint8 RGB `[3, H, W]`."""
        image = self._image(index)
        if self.unchecked[index]:
            if zlib.crc32(image.data) != self._sums[index]:
                self._repair(index)
            self.unchecked[index] = False
        return image

    def fill(self, index: int) -> None:
        """Decode an image into its place."""
        image, source = self._image(index), self.sources[index]
        image[:] = read_rgb(Path(source.name), source.read()).transpose(2, 0, 1)
        self._sums[index] = zlib.crc32(image.data)

    def _image(self, index: int) -> np.ndarray:
        start, end = self.starts[index : index + 2]
        return self.content[start:end].reshape(3, *self.shapes[index])

    @property
    def _sums(self) -> np.ndarray:
        return self.content[self.starts[-1] :].view(np.uint32)

    def _repair(self, index: int) -> None:
        if not self.reported:
            self.reported.fill_(True)
            print(f"{self.file}: is damaged; its images are decoded again", file=sys.stderr, flush=True)
        try:  # all who do so write the same
            replace(self, content=np.memmap(self.file, np.uint8, "r+")).fill(index)
        except OSError as error:
            raise UserError(f"{self.file}: is damaged and cannot be written ({error.strerror}); delete it") from None

    def __getstate__(self) -> dict[str, Any]:
        """Other processes map the same file: the pixels must not travel through a pipe."""
        file = self.file if isinstance(self.file, Path) else DupFd(self.file.fileno())
        return {**self.__dict__, "content": None, "file": file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not isinstance(self.file, Path):
            self.file = open(state["file"].detach(), "rb")  # noqa: SIM115  # open for the object's life
        self.content = np.memmap(self.file, np.uint8, "r")


def decode_all(sources: Sequence[Source], shapes: list[tuple[int, int]], cache_dir: Path | None) -> PixelCache:
    """Decode the images, of these (height, width), into memory, or into a file in `cache_dir`.

    The file is named for the images' paths, times and sizes, so that it is made once and used by all that read the same
    images; whoever comes while it is made waits.

    Raises:
        UserError: some images cannot be read (names them all), or `cache_dir` cannot hold the file.
    """
    total = _starts(shapes)[-1] + 4 * len(shapes)
    if cache_dir is None:
        cache = PixelCache(sources, shapes, *_memory(total))
        _fill(cache)
        return cache
    file = cache_dir / f"{_fingerprint(sources, shapes)}.rgb"
    try:
        if not _is_whole(file, total):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with open(file.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(file, total):  # not made by another while we waited
                    _write(file, total, sources, shapes)
        return PixelCache(sources, shapes, np.memmap(file, np.uint8, "r"), file)
    except OSError as error:
        raise _no_room(total, cache_dir, error) from None


def _memory(total: int) -> tuple[np.ndarray, BinaryIO]:
    try:
        free = free_memory(torch.device("cpu"))
        if free is not None and total > free:  # the system would give the memory, and end the process when it is used
            raise MemoryError
        file = open(os.memfd_create("dlgsanet"), "r+b")  # noqa: SIM115  # open as long as the cache
        file.truncate(total)
        return np.memmap(file, np.uint8, "r+"), file
    except (MemoryError, OSError) as error:
        if getattr(error, "errno", None) == errno.EFBIG:  # that limit holds for files in memory too
            reason = f"ulimit -f allows no file of {total / 2**30:.1f} GiB for decoded images; raise it"
        else:
            reason = f"no memory for {total / 2**30:.1f} GiB of decoded images; set cache_dir"
        raise UserError(reason) from None


def _no_room(total: int, folder: Path, error: OSError) -> UserError:
    return UserError(f"cache_dir: cannot keep {total / 2**30:.1f} GiB in {folder}: {error.strerror}")


def _is_whole(file: Path, total: int) -> bool:
    return file.exists() and file.stat().st_size == total


def _write(file: Path, total: int, sources: Sequence[Source], shapes: list[tuple[int, int]]) -> None:
    with written_aside(file) as aside:
        # A full disk is an error here; later, through the memory map, it would be a bus error.
        try:
            os.posix_fallocate(aside.fileno(), 0, total)
        except OSError as error:
            raise _no_room(total, file.parent, error) from None
        content = np.memmap(aside, np.uint8, "r+")
        _fill(PixelCache(sources, shapes, content, file))
        content.flush()


def _starts(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Where each image begins, and where the last one ends."""
    return [0, *np.cumsum([3 * height * width for height, width in shapes], dtype=np.int64).tolist()]


def _fill(cache: PixelCache) -> None:
    _, failures = for_each(cache.fill, range(len(cache.sources)), "decoding images")
    if failures:
        raise UserError(f"images cannot be used ({len(failures)}): {in_one_line(failures)}")


def _fingerprint(sources: Sequence[Source], shapes: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for source, shape in zip(sources, shapes, strict=True):
        status = source.file.stat()
        line = f"{source.file.resolve()}|{source.name}|{status.st_size}|{status.st_mtime_ns}|{shape}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]
