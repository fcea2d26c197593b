"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

from tqdm import tqdm

from dlgsanet.errors import one_line

T = TypeVar("T")

FIRST, EVERY = 3.0, 9.0  # seconds until the first line, and between lines
THREAD = "progress"  # the name of threads that write such lines
LONGEST_NAME = 30  # characters in front of a bar
BESIDE_NAME = 40  # columns for the rest, a short bar and the time left: tqdm would cut them off


@contextmanager
def progress_of(name: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of work that knows its share.

    Yields:
        A function to be called with the share that is done, from 0 to 1.
    """
    name = one_line(name)
    # Processes that share a terminal would write over each other's bars.
    if not sys.stderr.isatty() or multiprocessing.parent_process():
        yield _lines(name)
        return
    steps = 1000  # whole numbers: sums of shares would exceed the total by a rounding error, and tqdm would warn
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with tqdm(total=steps, desc=_shortened(name), bar_format=form, leave=False) as bar:
        yield lambda share: bar.update(min(steps, int(share * steps)) - bar.n) and None


def width_of(terminal: TextIO) -> int:
    """Columns of a terminal. `shutil` asks that of standard output, which may be another, or a file."""
    with suppress(OSError):
        return os.get_terminal_size(terminal.fileno()).columns or 80
    return shutil.get_terminal_size().columns


def _shortened(name: str) -> str:
    longest = max(9, min(LONGEST_NAME, width_of(sys.stderr) - BESIDE_NAME))
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _lines(name: str) -> Callable[[float], None]:
    begun = time.monotonic()
    due = begun + FIRST

    def show(share: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due and 0 < share < 1:
            due = now + EVERY
            left = duration((now - begun) * (1 - share) / share)
            print(f"{name}: {share:.0%}, about {left} left", file=sys.stderr, flush=True)

    return show


@contextmanager
def stage(name: str, at_once: bool = True) -> Iterator[None]:
    """Show that work goes on which does not know its share: its name, and again every few seconds.

    Args:
        name: what is being done.
        at_once: False: work that ends soon writes nothing.
    """
    begun = time.monotonic()
    finished = threading.Event()
    if at_once:
        print(f"{name} ...", file=sys.stderr, flush=True)

    def remind() -> None:
        wait = EVERY if at_once else FIRST
        while not finished.wait(wait):
            wait = EVERY
            print(f"{name} ... {duration(time.monotonic() - begun)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=remind, daemon=True, name=THREAD)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


class Counter:
    """`with Counter("x4", 40, "pictures") as counter: ... counter.done()`: progress of work that comes in pieces.

    In a file a line appears every few seconds, also while a single piece takes longer; work that ends sooner writes
    nothing.

    Args:
        title: what is being done.
        total: how many pieces there are; None if that is not known.
        unit: what they are, in the plural.
    """

    def __init__(self, title: str, total: int | None, unit: str = "images"):
        self.title, self.total, self.unit, self.count = title, total, unit, 0
        self._begun, self._finished = time.monotonic(), threading.Event()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(desc=title, total=total, unit=f" {unit}", leave=False) if terminal else None
        self._thread = threading.Thread(target=self._show, daemon=True, name=THREAD)

    def __enter__(self) -> "Counter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._finished.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def done(self, count: int = 1) -> None:
        """So many more pieces are finished."""
        self.count += count
        if self._bar is not None:
            self._bar.update(count)

    def each(self, pieces: Iterable[T]) -> Iterator[T]:
        """The pieces; each counts as finished when the next one is asked for."""
        for piece in pieces:
            yield piece
            self.done()

    def _show(self) -> None:
        wait = FIRST
        while not self._finished.wait(wait):
            if self._bar is not None:
                self._bar.refresh()
                continue
            wait = EVERY
            of = "" if self.total is None else f" of {self.total}"
            time_taken = duration(time.monotonic() - self._begun)
            print(f"{self.title}: {self.count}{of} {self.unit}, {time_taken}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people write them: ``8.1 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
