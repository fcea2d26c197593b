"""Batches from worker processes that cannot hang: neither when they start, nor when one fails, nor at the end.

Workers are forked from a server process (multiprocessing's `forkserver`) that has imported the packages and computed
nothing. A worker forked from the training process itself would inherit thread pools without their threads, and would
wait for them forever in the first operation that uses them (OpenMP's in a convolution of PyTorch, OpenCV's).
"""

import errno
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack
from multiprocessing import forkserver, resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dlgsanet.errors import UserError, reason_of
from dlgsanet.extensions import Imported
from dlgsanet.signals import ASKING, end_with_the_main_process
from dlgsanet.training.samples import Key, SampleStream, SeededSamples

PRELOADED = ["dlgsanet.plugin", "dlgsanet.training.loader"]
FILES, FILES_OF_A_WORKER = 16, 8  # that are open at the same time: pipes, and batches on their way
SHARED_MEMORY = (
    "/dev/shm, through which data workers pass batches, is full; make it larger (docker run --shm-size=2g; "
    "mount -o remount,size=2g /dev/shm) or set datasets.train.num_worker_per_gpu: 0"
)
warnings.filterwarnings("ignore", "This DataLoader will create")  # the log says it, in `introduce`


class LoadingError(UserError):
    """A sample cannot be read, or a process that loads data has died."""


class _Batches(Dataset[Any]):
    """Batches by their samples' keys. An error is returned as the value, so that its text comes through unchanged."""

    def __init__(self, samples: SeededSamples):
        self.imported = Imported()  # unpickled before the samples, whose data set may be a class of these files
        self.samples = samples

    def __getitem__(self, keys: list[Key]) -> Any:
        try:
            return default_collate([self.samples[key] for key in keys])
        except UserError as error:
            return LoadingError(str(error))
        except Exception as error:  # collating raises many kinds
            reason = reason_of(error)
            if "shared memory" in reason:
                return LoadingError(SHARED_MEMORY)
            return LoadingError(f"datasets.train: no batch can be made of its samples: {reason}")


def start_server() -> None:
    """Start the process that workers are forked from; it imports the packages while this one continues.

    It never sees signals of `ASKING`, nor do the workers: those are blocked from its first instant.
    The same holds for multiprocessing's resource tracker, which by itself ignores SIGINT and SIGTERM.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # the line before has unblocked two of them
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def endless_loader(
    samples: SeededSamples, opt: dict[str, Any], stream: SampleStream, workers: int
) -> Generator[dict[str, Any], None, None]:
    """Iterate over the batches of a stream, read ahead by worker processes, which end when the iterator is closed.

    Args:
        samples: where samples come from; sent to the workers.
        opt: the data set's options: `pin_memory`, `num_prefetch_queue`.
        stream: the batches' keys.
        workers: how many processes. 0: the batches are read in this one, when they are asked for.

    Raises:
        LoadingError: a sample cannot be read, or a worker has died or cannot be started.
    """
    iterator = None
    try:
        if workers:
            _check_open_files(workers)
            start_server()
        loader = DataLoader(
            _Batches(samples),
            batch_size=None,  # the keys of a whole batch are one index
            sampler=stream,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
            pin_memory=opt["pin_memory"] and torch.cuda.is_available(),
            prefetch_factor=opt["num_prefetch_queue"] if workers else None,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else the loader draws from the run's own, once more after each resume
        )
        iterator = _started(loader, samples)
        for batch in iterator:
            if isinstance(batch, LoadingError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        raise LoadingError(_what_happened(error, iterator)) from None
    finally:
        if workers and iterator is not None:
            _end_workers(iterator)


def _started(loader: DataLoader[Any], samples: SeededSamples) -> Any:
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = f"its {type(samples.dataset).__name__} cannot be sent to data workers ({error})"
        raise LoadingError(f"datasets.train: {reason}; set num_worker_per_gpu: 0") from None


def _check_open_files(workers: int) -> None:
    """Raise an OSError unless this process may open as many files as workers need.

    With too few, starting a worker fails in the middle, and both PyTorch and the server print tracebacks.
    """
    with ExitStack() as stack:
        for _ in range(FILES + FILES_OF_A_WORKER * workers):
            stack.enter_context(open(os.devnull))


def _what_happened(error: Exception, iterator: Any) -> str:
    if getattr(error, "errno", None) == errno.EMFILE:
        return "too many open files for data workers; raise ulimit -n, or set datasets.train.num_worker_per_gpu: 0"
    workers = getattr(iterator, "_workers", ())
    # The connection to a worker that dies may break before its exit code is known.
    multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=5)
    for worker in workers:
        if worker.exitcode == -signal.SIGBUS:
            return SHARED_MEMORY
        if worker.exitcode == -signal.SIGKILL:
            return "a process that loads data was killed, perhaps because memory ran out"
    return f"a process that loads data has failed ({reason_of(error, 200)})"


def _end_workers(iterator: Any) -> None:
    iterator._shutdown_workers()  # which waits a while for each
    for worker in iterator._workers:  # those that are stuck ignore SIGTERM too, and Python waits for them at its end
        worker.kill()
        worker.join()


def _begin_worker(number: int) -> None:
    for ignored in ASKING:
        signal.signal(ignored, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]
    end_with_the_main_process()  # PyTorch's watchdog sees the server, which lives as long as workers


def _cannot_send(error: Exception, batch: Any) -> None:
    # Python would print a traceback and continue without the batch, for which the main process waits forever.
    print(f"dlgsanet: a data worker cannot send a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)
