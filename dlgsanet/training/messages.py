"""The log of a run, in a file and on the terminal, and the line in a terminal that shows its progress."""

import logging
import sys
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

from basicsr.utils import logger as basicsr_logging

from dlgsanet.progress import width_of

_LOGGERS = ("dlgsanet", "basicsr")
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
STARTING = 20  # iterations before the threads are judged
MOST_SECONDS = 1.25  # that a step may last for each second of CPU time


class ProgressLine:
    """The last line of a terminal, rewritten in place. It does nothing where the stream is not a terminal, or is one
    that has been closed.

    A text wider than the terminal is cut: a wrapped line would stay when it is rewritten.
    """

    def __init__(self, stream: TextIO, enabled: bool | None = None):
        self.stream = stream
        self.enabled = stream.isatty() if enabled is None else enabled
        self.last = 0.0

    def show(self, text: str) -> None:
        """Replace the text, at most five times per second."""
        if self.enabled and time.monotonic() - self.last > 0.2:
            self.last = time.monotonic()
            self._write(text[: width_of(self.stream) - 1])

    def clear(self) -> None:
        """Remove the line."""
        if self.enabled:
            self._write("")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(f"\r\033[K{text}")
            self.stream.flush()
        except OSError:  # the run goes on without it
            self.enabled = False


class _AboveProgress(logging.StreamHandler):  # type: ignore[type-arg]  # takes an argument from Python 3.11 on
    """Writes log lines above the progress line."""

    def __init__(self, line: ProgressLine):
        super().__init__(line.stream)
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        self.line.clear()
        super().emit(record)


def start_logging(rank: int) -> ProgressLine:
    """Send the messages of this project and of BasicSR to stderr; of other ranks than 0 only warnings.

    Rank 0 keeps them for `log_to_file`: the folder of a run is made after much has been checked.
    """
    logging.raiseExceptions = False  # a full disk is reported once, by what must be saved
    line = ProgressLine(sys.stderr, enabled=None if rank == 0 else False)
    handlers: list[logging.Handler] = [_AboveProgress(line)]
    if rank == 0:
        handlers.append(MemoryHandler(sys.maxsize, flushLevel=sys.maxsize))
    for logger in map(logging.getLogger, _LOGGERS):
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.setFormatter(_FORMAT)
            logger.addHandler(handler)
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.propagate = False
    basicsr_logging.initialized_logger["basicsr"] = True  # it would add handlers of its own
    return line


def log_to_file(folder: Path) -> None:
    """Write the messages since `start_logging`, and all that follow, to a new file in the folder."""
    file = logging.FileHandler(folder / f"train_{time.strftime('%Y%m%d_%H%M%S')}.log")
    file.setFormatter(_FORMAT)
    kept = next(h for h in logging.getLogger(_LOGGERS[0]).handlers if isinstance(h, MemoryHandler))
    for logger in map(logging.getLogger, _LOGGERS):
        logger.removeHandler(kept)
        logger.addHandler(file)
    kept.setTarget(file)
    kept.close()  # writes what was kept


class Pace:
    """The time of an iteration, averaged over the last ones without validation, and the time that is left."""

    def __init__(self, total: int):
        self.total = total
        self.seconds_per_iteration = 0.0
        self.waiting = 0.0  # for data, of those seconds
        self.computing = 0.0  # CPU time of all threads, without what they computed while data were waited for
        self.counted = 0

    def add(self, seconds: float, waiting: float, computing: float = 0.0) -> None:
        """Count one iteration."""
        self.counted += 1
        # The first iteration, in which much is loaded and compiled, counts until there is another.
        weight = max(1 / max(1, self.counted - 1), 0.02)
        self.seconds_per_iteration += weight * (seconds - self.seconds_per_iteration)
        self.waiting += weight * (waiting - self.waiting)
        self.computing += weight * (computing - self.computing)

    def left(self, iteration: int) -> str:
        """The expected time of the iterations after this one."""
        return duration(self.seconds_per_iteration * (self.total - iteration))

    @property
    def threads_wait(self) -> bool:
        """Whether threads on the CPU must have waited for cores.

        A step that has its cores takes as much CPU time as it lasts, or more.
        """
        lasting = self.seconds_per_iteration - self.waiting
        return self.counted > STARTING and lasting > MOST_SECONDS * self.computing


def duration(seconds: float) -> str:
    """Seconds as days, hours, minutes: `1d 03:25:40`."""
    days, rest = divmod(int(seconds), 86400)
    text = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days}d {text}" if days else text


def progress_text(iteration: int, pace: Pace, log: dict[str, float], rate: float, scores: dict[str, Any]) -> str:
    """One line, the most important first: a narrow terminal cuts its end."""
    losses = "  ".join(f"{name} {value:.4g}" for name, value in log.items())
    measured = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
    return (
        f"{iteration:,}/{pace.total:,}  {pace.left(iteration)} left  {losses}  {measured or 'not validated yet'}  "
        f"lr {rate:.3g}  {pace.seconds_per_iteration:.3g} s ({pace.waiting:.2g} s for data)"
    )
