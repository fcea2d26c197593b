"""Visits: the pictures of one open page, in a folder of their own that is deleted when the page is closed."""

import os
import re
import secrets
import shutil
import threading
import time
import zipfile
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import refuse_other_files

NAME_BYTES = 180  # of a file name, so that a suffix still fits into the 255 bytes of file systems


@dataclass(frozen=True)
class Limits:
    """What is accepted: MiB of a file, megapixels of a picture, pictures of a page, seconds for a picture."""

    megabytes: int = 50
    megapixels: int = 24
    pictures: int = 20
    seconds: int = 600


@dataclass(eq=False)
class Entry:
    """A picture of a page.

    Attributes:
        number: identifies it within the page.
        name: of the file, as the visitor knows it.
        source: the uploaded file.
        state: added, waiting, working, done, failed or stopped.
        share: of the work that is done, from 0 to 1.
        begun, ended: when work began and ended, in seconds of a monotonic clock.
        message: what went wrong.
        hint: other weights that would suit it better.
        result: the upscaled file.
        shown: files of the input and the result for the browser.
        sizes: (height, width) of the input and of the result.
        work: what the queue does with it, from the time when it was put there.
    """

    number: int
    name: str
    source: Path
    state: str = "added"
    share: float = 0.0
    begun: float = 0.0
    ended: float = 0.0
    message: str = ""
    hint: str = ""
    result: Path | None = None
    shown: tuple[Path, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    work: Future[None] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it waits or is worked on."""
        return self.state in ("waiting", "working")

    def wait(self) -> None:
        """It has been put into the queue."""
        self.state, self.share, self.message = "waiting", 0.0, ""

    def begin(self) -> None:
        """Work on it begins."""
        self.state, self.begun = "working", time.monotonic()

    def end(self, state: str, message: str = "") -> None:
        """Work on it has ended."""
        self.message, self.ended, self.state = message, time.monotonic(), state


@dataclass(eq=False)
class Visit:
    """One open page: its pictures, and the folder of their files."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    archive: Path | None = None
    _added: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def over(self) -> bool:
        """Whether work for it must end."""
        return self.closed or self.stopped.is_set()

    def add(self, upload: Path, name: str, limits: Limits) -> None:
        """Take an uploaded file into the folder.

        Raises:
            UserError: too many pictures, or too large a file; the upload is deleted.
        """
        try:
            if upload.stat().st_size > limits.megabytes * 2**20:
                raise UserError(f"{name}: at most {limits.megabytes} MiB are accepted")
            with self._lock:
                if len(self.entries) >= limits.pictures:
                    raise UserError(f"{name}: this page takes {limits.pictures} pictures at a time; remove some first")
                if self.closed:
                    return
                # Never that of a picture before: a browser shows what it has kept of an address.
                self._added += 1
                source = self.folder / str(self._added) / "source"
                source.parent.mkdir(parents=True)
                shutil.move(upload, source)
                entry = Entry(self._added, plain_name(name), source)
                try:
                    refuse_other_files(Path(entry.name), source.read_bytes())
                except UserError as error:
                    entry.end("failed", str(error))
                self.entries.append(entry)
        except FileNotFoundError:
            raise UserError(f"{name}: the upload was interrupted; add the picture again") from None
        finally:
            upload.unlink(missing_ok=True)

    def store(self, entry: Entry, name: str, files: dict[str, bytes]) -> None:
        """Write the files of a result, unless the page was closed in the meantime."""
        with self._lock:
            if self.closed:
                return
            folder = entry.source.parent
            for file, content in files.items():
                # Previews have names of their own, whatever the picture is called.
                (folder / ("result" if file == name else "preview")).mkdir(exist_ok=True)
                self._place(folder, file, name).write_bytes(content)
            entry.result = self._place(folder, name, name)
            entry.shown = tuple(self._place(folder, file, name) for file in files if file != name)

    @staticmethod
    def _place(folder: Path, file: str, result: str) -> Path:
        return folder / ("result" if file == result else "preview") / file

    def pack(self) -> None:
        """Write all results into one ZIP, if there are several.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        with self._lock:
            results = [entry.result for entry in self.entries if entry.result]
            if self.closed or len(results) < 2:
                return
            target = self.folder / secrets.token_hex(4) / "upscaled.zip"
            target.parent.mkdir()
            taken: set[str] = set()
            try:
                with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
                    for path in results:
                        archive.write(path, _free_name(path.name, taken))
            except OSError:
                shutil.rmtree(target.parent)
                raise
            if self.archive:
                shutil.rmtree(self.archive.parent)
            self.archive = target

    def clear(self) -> None:
        """Forget every picture that is not worked on, and delete its files."""
        with self._lock:
            for entry in [entry for entry in self.entries if not entry.unfinished]:
                shutil.rmtree(entry.source.parent, ignore_errors=True)
                self.entries.remove(entry)
            if self.archive:
                shutil.rmtree(self.archive.parent)
                self.archive = None

    def close(self) -> None:
        """The page is closed: end its work and delete everything."""
        self.closed = True
        with self._lock:
            shutil.rmtree(self.folder, ignore_errors=True)


class Visits:
    """The open pages, by the identifier that each has.

    Args:
        root: the folder of all files; each visit has a folder below it with a name that cannot be guessed.
    """

    def __init__(self, root: Path):
        self.root = root
        self._by_page: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def of(self, page: str) -> Visit:
        """The visit of a page; a new one if the page has none."""
        with self._lock:
            if page not in self._by_page:
                folder = self.root / secrets.token_urlsafe(16)
                folder.mkdir(parents=True)
                self._by_page[page] = Visit(folder)
            return self._by_page[page]

    def close(self, page: str) -> None:
        """The page was closed."""
        with self._lock:
            visit = self._by_page.pop(page, None)
        if visit:
            visit.close()

    def close_all(self) -> None:
        """The server ends."""
        for page in list(self._by_page):
            self.close(page)


def plain_name(name: str) -> str:
    """A file name without folders, control characters or excessive length."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", name.replace("\\", "/").rpartition("/")[2]) or "picture"
    stem, extension = os.path.splitext(name)
    room = NAME_BYTES - len(extension[:20].encode())
    return stem.encode()[:room].decode(errors="ignore") + extension[:20]


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number where another file of the archive has it."""
    stem, extension = os.path.splitext(name)
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{stem} ({number}){extension}"
    taken.add(found)
    return found
