"""Writing files that are never seen half-written, by any number of writers at once.

A file is written under a temporary name in its own folder and renamed when it is complete. Each writer has its own
temporary name, and holds a lock on the file as long as it writes. A leftover of a killed writer therefore has such a
name and a lock that nobody holds. The next writer in the folder deletes it.
"""

import errno
import fcntl
import functools
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from dlgsanet.errors import UserError, one_line

T = TypeVar("T")

HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:60]
# Leftovers of another host are deleted only after this time, even if their lock is free: some network file systems keep
# locks within each host, and a lock that is free here may be held there.
OTHER_HOST_SECONDS = 3600
# Where the file system has no locks at all.
NO_LOCKS_SECONDS = 24 * 3600

_PREFIX, _SUFFIX = ".dlgsanet-", ".part"
_OURS = f"{_PREFIX}{HOST}-"
_PROCESS = secrets.token_hex(4)  # not the process id: containers give the same ids again


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file, open for reading and writing. It gets the name `path` when the block ends without an exception.

    The file's `name` is temporary until then. If the block raises, the file is deleted. A symbolic link at `path`
    stays, and what it points to is replaced. The new file keeps the permissions of the file that it replaces and, where
    the system allows it, its owner and group.

    Raises:
        UserError: the folder cannot be written, the disk is full, or `path` is a folder, device or pipe; nothing is
            left behind.
    """
    with _errors_name(path):
        path = _target(path)
    with _errors_name(path), _made(path.parent), _temporary_file(path.parent) as file:
        yield file
        file.flush()
        _take_permissions(file, path)
        os.fsync(file.fileno())
        os.replace(file.name, path)
        sync_folder(path.parent)


@contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """A new folder. It gets the name `path`, which must be free, when the block ends without an exception.

    Raises:
        UserError: it cannot be written, or there is something at `path`; nothing is left behind.
    """
    with _errors_name(path), _made(path.parent):
        aside = _temporary_name(path.parent)
        aside.mkdir()
        try:
            with open(aside / _SUFFIX, "wb") as lock:
                with suppress(OSError):
                    _lock(lock)
                yield aside
                os.unlink(lock.name)
                os.replace(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that at any moment, killed or not, it is there in full or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    with written_aside(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


class _CheckedError(Exception):
    """Ends the check of `check_can_write`."""


def check_can_write(path: Path) -> None:
    """Check before long work that `write_whole` can write a file of this name. Nothing is left behind.

    Raises:
        UserError: as `write_whole`, unless the disk becomes full later.
    """
    with suppress(_CheckedError), written_aside(path):
        _target(path)  # in its folder, which may be new, its name may be too long
        raise _CheckedError


def ignores_case(folder: Path) -> bool:
    """Whether names that differ only in case are one file there, as on macOS's disks and on memory cards."""
    there = next(path for path in (folder, *folder.parents) if os.path.isdir(path))
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=_PREFIX, dir=there) as file:
        return os.path.exists(there / Path(file.name).name.upper())
    return False


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, where the file system can do that, so that they survive a power failure."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~`; as it is where the user of ``~NAME`` does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def printable(name: str | Path) -> str:
    """A file name with control characters and bytes that are not UTF-8 written as ``\\xe4``, to print and store it."""
    return one_line(os.fsencode(name).decode(errors="backslashreplace"))


def _target(path: Path) -> Path:
    """The file that is to be replaced: where symbolic links lead.

    Raises:
        OSError: the name is too long, or is that of something other than a file.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):  # the file would take the place of a device or pipe
            raise OSError(errno.EINVAL, "it is not a regular file")
    return path


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; those that are new and still empty go when the block raises."""
    new = list(itertools.takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))
    try:
        _retried(lambda: folder.mkdir(parents=True, exist_ok=True))
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # the lowest may be missing: its name may be too long
                path.rmdir()
        raise


def _take_permissions(file: BinaryIO, replaced: Path) -> None:
    with suppress(FileNotFoundError):
        status = replaced.stat()
        with suppress(OSError):  # only root may give files away
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        with suppress(OSError):  # a file system without permissions
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))


def _temporary_name(folder: Path) -> Path:
    _clean_once(folder, os.getpid())
    return folder / f"{_OURS}{_PROCESS}-{secrets.token_hex(4)}{_SUFFIX}"


def _new_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return open(_temporary_name(folder), "x+b")


def _retried(make: Callable[[], T]) -> T:
    """``make()``. Another process may remove its new and empty folder (`_made`) while this one begins to use it."""
    for _ in range(50):
        with suppress(FileNotFoundError, FileExistsError):
            return make()
    return make()


@contextmanager
def _temporary_file(folder: Path) -> Iterator[BinaryIO]:
    while True:
        file = _retried(lambda: _new_file(folder))
        with suppress(OSError):
            if not _lock(file) or not os.fstat(file.fileno()).st_nlink:  # another writer takes it for a leftover
                file.close()
                continue
        break
    try:
        with file:
            yield file
    except BaseException:  # Ctrl-C too leaves nothing behind
        with suppress(OSError):
            os.unlink(file.name)
        raise


def _lock(file: BinaryIO) -> bool:
    """Lock an open file; False: another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@functools.cache
def _clean_once(folder: Path, process: int) -> None:
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another process may delete it at the same time
            if not path.name.startswith(f"{_OURS}{_PROCESS}-") and _is_left_over(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_left_over(path: Path) -> bool:
    age = time.time() - path.stat().st_mtime
    if not path.name.startswith(_OURS) and age < OTHER_HOST_SECONDS:
        return False
    try:
        with open(path / _SUFFIX if path.is_dir() else path, "r+b") as file:
            return _lock(file)
    except OSError:  # no locks here, or a folder that has no lock file (just made, or complete)
        return age > NO_LOCKS_SECONDS
