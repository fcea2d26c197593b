"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

FIRST, EVERY = 3.0, 9.0  # seconds until the first line, and between lines


@contextmanager
def progress_of(name: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of work that knows its share.

    Yields:
        A function to be called with the share that is done, from 0 to 1.
    """
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    steps = 1000  # whole numbers: sums of shares would exceed the total by a rounding error, and tqdm would warn
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with tqdm(total=steps, desc=name, bar_format=form, leave=False) as bar:
        yield lambda share: bar.update(min(steps, int(share * steps)) - bar.n) and None


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
def stage(name: str) -> Iterator[None]:
    """Show that work goes on which does not know its share: its name at once, and again every few seconds."""
    begun = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    finished = threading.Event()

    def remind() -> None:
        while not finished.wait(EVERY):
            print(f"{name} ... {duration(time.monotonic() - begun)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def duration(seconds: float) -> str:
    """Seconds as people write them: ``8.1 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
