"""Signals that ask a run to save and stop: slurm's SIGTERM and SIGUSR1, Ctrl-C, and SIGHUP of a closed terminal."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

REQUEUE = 75  # EX_TEMPFAIL: the run has saved; start it again with --auto-resume
INTERRUPTED = 130  # what shells report after Ctrl-C
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# Slurm and terminals send these to every process of a run. The main process decides when the others end.
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """Within the block, records the first signal that asks to stop; a second Ctrl-C stops at once.

    `received` is the number of the signal, or 0. While `patient` is false there is nothing to save, and the
    first Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False

    def __enter__(self) -> "StopSignals":
        asking = [n for n in ASKING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores it
        # A process inherits which signals are blocked. Whoever started this one may have blocked these.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, asking)
        self._before = {number: signal.signal(number, self._note) for number in asking}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.received or not self.patient):
            raise KeyboardInterrupt
        self.received = self.received or number


def end_with_the_main_process() -> None:
    """Have this process, a child of multiprocessing, end when the main process has ended, in whatever way."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def stop_with_the_parent() -> None:
    """Have this process, which is about to become another program, get SIGTERM when its parent has ended. On Linux."""
    with suppress(AttributeError):  # elsewhere it goes on
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_in_process(work: Callable[..., object], arguments: tuple[object, ...], signals: StopSignals) -> int:
    """Call a function of a module in a process of its own, which ends when this one does; its exit code.

    A signal that asks this process to stop asks the other one too, and is waited for.
    """
    process = multiprocessing.get_context("spawn").Process(target=_bound, args=(work, *arguments))
    signals.patient = True
    process.start()
    while not signals.received and process.exitcode is None:
        process.join(0.2)
    if signals.received:
        process.terminate()  # not counted as a second Ctrl-C
        process.join()
    signals.patient = False
    return process.exitcode or 0


def _bound(work: Callable[..., object], *arguments: object) -> None:
    end_with_the_main_process()
    work(*arguments)


def signal_name(number: int) -> str:
    """A signal as messages name it: `SIGTERM`, `SIGUSR1 (time limit)`."""
    meaning = {signal.SIGUSR1: " (time limit)", signal.SIGINT: " (Ctrl-C)", signal.SIGHUP: " (terminal closed)"}
    return signal.Signals(number).name + meaning.get(signal.Signals(number), "")


def exit_code(number: int) -> int:
    """The exit code of a run that a signal has stopped."""
    return INTERRUPTED if number == signal.SIGINT else REQUEUE
