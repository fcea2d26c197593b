"""Files with one line for each finished part of the work, so that an interrupted run continues where it stopped."""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import dlgsanet
from dlgsanet.errors import UserError
from dlgsanet.packages import code_in
from dlgsanet.pictures.shares import Shard


class Journal:
    """Results by key, written to disk immediately. A truncated line is ignored.

    Each of several jobs writes to a file of its own, because file servers do not append the lines of several hosts to
    one file reliably. All of them read all files. A key names everything that its result depends on, so that the order
    of the lines does not matter.
    """

    def __init__(self, folder: Path, shard: Shard | None = None):
        """
        Args:
            folder: where the files `journal*.jsonl` are.
            shard: the part of the work whose file is written; None: that of no part.

        Raises:
            UserError: a file cannot be read or written.
        """
        self._known: dict[str, Any] = {}
        path = folder / (f"journal_{shard.part}_of_{shard.parts}.jsonl" if shard else "journal.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob("journal*.jsonl"):
                self._read(other.read_text(encoding="utf-8", errors="replace"))
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # open for the object's life
            if not self._ends_with_a_line():
                self._file.write("\n")
        except OSError as error:
            raise UserError(f"cannot write {error.filename or path}: {error.strerror}") from None

    def _read(self, content: str) -> None:
        for line in content.splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]

    def _ends_with_a_line(self) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        return size == 0 or os.pread(self._file.fileno(), 1, size - 1) == b"\n"

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def add(self, key: str, result: Any) -> None:
        """Keep a result.

        Raises:
            UserError: the file cannot be written, because the disk is full for example.
        """
        self._known[key] = result
        try:
            self._file.write(json.dumps({"key": key, "result": result}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}; run it again for the rest") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what `add` could not write
            self._file.close()


@functools.cache
def digest_of_package() -> str:
    """A digest of all code of this package: another version may give other pictures, scores and times."""
    return digest(*code_in(Path(dlgsanet.__file__).parent))


def digest(*parts: Any) -> str:
    """A hash of files (`Path`: their content), bytes and JSON-like values; the same in every run."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part
        content = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
        hashed.update(hashlib.sha256(content).digest())
    return hashed.hexdigest()[:24]
