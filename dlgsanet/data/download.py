"""Download archives of gigabytes over connections that break."""

import fcntl
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from dlgsanet.errors import UserError
from dlgsanet.files import sync_folder, write_whole
from dlgsanet.progress import Counter, stage

BLOCK = 1 << 20
ATTEMPTS = 5  # in a row without a byte received


def download(address: str, target: Path, pause: float = 2.0) -> None:
    """Download a file from an HTTP address. After a break, also in a later run, only what is missing is requested.

    Prints the SHA-256 of the file, to compare with what its source or others state.

    Args:
        target: where the complete file goes. Until then `.NAME.part` and `.NAME.version` are in its folder.
        pause: seconds before the first retry, doubled before each further one.

    Raises:
        UserError: no connection, the server refuses, or the disk is full; a further run goes on from there.
    """
    part, version = (target.with_name(f".{target.name}.{suffix}") for suffix in ("part", "version"))
    with _alone(part, target):
        _download(address, part, version, pause)
        print(f"{target}: sha256 {_sha256(part)}")
        part.replace(target)
        sync_folder(target.parent)
        version.unlink(missing_ok=True)


@contextmanager
def _alone(part: Path, target: Path) -> Iterator[None]:
    """Keep other processes from writing to `part`. The lock ends with the process, however it ends."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as lock:
            _lock(lock, part, target)
            try:
                yield
            finally:
                if not _size(part):
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from None


def _lock(file: BinaryIO, part: Path, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
    except (BlockingIOError, FileNotFoundError):  # or it has just been completed
        mine = False
    if not mine:
        raise UserError(f"{target}: another process downloads it; wait until it is done")


def _download(address: str, part: Path, version: Path, pause: float) -> None:
    by_hand = "or download it by hand and give the file's name"
    failures = 0
    while True:
        before = _size(part)
        try:
            return _receive(address, part, version)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = error.reason if type(error) is urllib.error.URLError else error
            refused = isinstance(error, urllib.error.HTTPError) and error.code < HTTPStatus.INTERNAL_SERVER_ERROR
            failures = 0 if _size(part) > before else failures + 1
            if refused or failures == ATTEMPTS:
                raise UserError(f"{address}: {reason}; run again to go on from byte {before}, {by_hand}") from None
            seconds = pause * 2 ** max(0, failures - 1)
            print(f"{address}: {reason}; again in {seconds:.0f} s", file=sys.stderr)
            with stage(f"waiting to request {address} again", at_once=False):
                time.sleep(seconds)


def _receive(address: str, part: Path, version: Path) -> None:
    """Append to `part` what is missing of it.

    The server's name for this version of the file is kept in the file `version`. If the file has changed since, the
    server sends the new one from its beginning.

    Raises:
        ConnectionError: the server sent less than it announced.
    """
    request = urllib.request.Request(address)
    start = _size(part)
    if start and (name := _kept_name(version)):
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", name)
    try:
        with stage(f"requesting {address}", at_once=False):
            answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers["Content-Range"] == f"bytes */{start}":
                return  # killed after the last byte, before the file got its name
            os.truncate(part, 0)  # the same file: it is locked
        raise
    with answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
        if name := answer.headers["ETag"] or answer.headers["Last-Modified"]:
            write_whole(version, name.encode())
        length = answer.headers["Content-Length"]
        total = start + int(length) if length else None
        megabytes = None if total is None else total // BLOCK
        with open(part, "ab" if start else "wb") as file, Counter(part.name, megabytes, "MB") as counter:
            while block := answer.read(BLOCK):
                file.write(block)
                counter.done(file.tell() // BLOCK - counter.count)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection broke off after {_size(part)} of {total} bytes")


def _kept_name(version: Path) -> str | None:
    """The server's name for the version of a file; None: there is none, and the file is requested whole."""
    if not version.exists():
        return None
    try:
        name = version.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        name = ""
    if name.isprintable() and name:
        return name
    print(f"{version}: is damaged; the file is downloaded from its beginning", file=sys.stderr)
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file, Counter(f"SHA-256 of {path.name}", _size(path) // BLOCK, "MB") as counter:
        while block := file.read(BLOCK):
            digest.update(block)
            counter.done(file.tell() // BLOCK - counter.count)
    return digest.hexdigest()
