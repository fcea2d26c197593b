"""A file with one line for each finished part of the work, so that an interrupted run continues where it stopped."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dlgsanet.errors import UserError


class Journal:
    """Results by key, written to disk immediately. A truncated line is ignored."""

    def __init__(self, path: Path):
        """
        Raises:
            UserError: the file cannot be read or written.
        """
        self._known: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  # open for the object's life
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
        if content and not content.endswith("\n"):
            self._file.write("\n")

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def add(self, key: str, result: Any) -> None:
        self._known[key] = result
        self._file.write(json.dumps({"key": key, "result": result}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def digest(*parts: Any) -> str:
    """A hash of files (`Path`: their content), bytes and JSON-like values; the same in every run."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part
        content = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
        hashed.update(hashlib.sha256(content).digest())
    return hashed.hexdigest()[:24]
