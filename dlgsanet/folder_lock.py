"""One process at a time for a folder of results, on this host and on others that share the file system.

The owner holds a lock (POSIX, by `fcntl`) on a file next to the folder, and writes its name into it. The kernel or the
file server releases the lock when the process ends, in whatever way. Processes that it has forked do not hold it.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from dlgsanet.errors import UserError

logger = logging.getLogger("dlgsanet")

REQUEUE_SECONDS = 120.0  # until a file server gives up the locks of a host that is gone


class InUseError(UserError):
    """Another process owns the folder."""


_held: set[Path] = set()  # POSIX locks do not exclude a second owner within the process


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own `folder`, which need not exist, within the block. The lock file is `.NAME.lock` in the folder above.

    A slurm job that was queued again waits up to `REQUEUE_SECONDS` for the lock of its former start.
    If the file system has no locks, the process that the file names is the owner if it runs, or is of another host.

    Raises:
        InUseError: another process owns it; the message names its host, process and start.
        UserError: the lock file cannot be written.
    """
    path = folder.parent.resolve() / f".{folder.name}.lock"
    if path in _held:  # and to open the file again would release the lock
        raise _refusal(folder, path, _this_process())
    with _acquired(folder, path):
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            with suppress(OSError):
                path.unlink()  # as long as the lock is held
                path.parent.rmdir()  # if nothing else was written


def _acquired(folder: Path, path: Path) -> TextIO:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+")  # noqa: SIM115  # closed by the caller
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        try:
            _acquire(file, folder, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # its former owner has deleted it meanwhile


def _acquire(file: TextIO, folder: Path, path: Path) -> None:
    deadline = time.monotonic() + REQUEUE_SECONDS
    while not _lock(file):
        owner, job = _owner(file), os.environ.get("SLURM_JOB_ID")
        if not job or owner.get("job") != job or time.monotonic() > deadline:
            raise _refusal(folder, path, owner)
        time.sleep(1)
    before = _owner(file)
    if before.get("host", socket.gethostname()) != socket.gethostname():
        logger.warning(
            "%s: the run of %s has ended without removing it. If that run goes on, this file system does not share "
            "locks between hosts: stop one of the two runs",
            path,
            _described(before),
        )
    with suppress(OSError):  # on a full disk the lock alone is enough
        file.truncate(0)
        os.write(file.fileno(), json.dumps(_this_process()).encode())  # a buffer would fail again when it is closed


def _lock(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
    owner = _owner(file)  # the file system has no locks
    elsewhere = owner and owner.get("host") != socket.gethostname()
    return not elsewhere and (not owner or _started(owner.get("pid", 0)) != owner.get("ticks"))


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "ticks": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _started(process: int) -> int | None:
    """When a process of this host started, in the kernel's units; None: there is none."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def _owner(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    with suppress(ValueError):  # it is just being written
        owner = json.loads(file.read())
        return owner if isinstance(owner, dict) else {}
    return {}


def _refusal(folder: Path, path: Path, owner: dict[str, Any]) -> InUseError:
    return InUseError(
        f"{folder} is in use by another run ({_described(owner)}); stop it, wait "
        f"until it ends, or set another name. If it no longer runs, delete {path}"
    )


def _described(owner: dict[str, Any]) -> str:
    host, process, started = (owner.get(key, "unknown") for key in ("host", "pid", "started"))
    return f"host {host}, process {process}, started {started}"
