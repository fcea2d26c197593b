"""Writing files so that no half of one is ever seen."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dlgsanet.errors import UserError


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path` when the block ends well, and is gone when it does not.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
        raise


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that at any moment, killed or not, it is there in full or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    with written_aside(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)
