"""The same work on many images, on all cores, with its progress shown. Bad images are collected, not fatal.

Threads are enough: Pillow's coders and the matrix products of `resize` release Python's lock.
"""

import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import TypeVar

from dlgsanet.pictures.reading import UnreadableImageError
from dlgsanet.progress import Counter

FILES_PER_THREAD = 4  # open at a time: an image, its copy under a temporary name, its folder, a module
MOST_SHOWN = 20  # messages in a line

Job = TypeVar("Job")
Result = TypeVar("Result")


def for_each(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: int | None = None
) -> tuple[list[Result], list[str]]:
    """Call `work(job)` for every job.

    Args:
        work: reads or writes the files of one job.
        jobs: one for each image.
        title: what the progress is called.
        workers: number of threads. Default: one for each core that this process may use. There are fewer where the
            limit of open files (``ulimit -n``) is low.

    Returns:
        The results in the order of the jobs, and one line for each job whose image could not be used.

    Raises:
        What `work` raises, other than `UnreadableImageError`: at once, jobs not yet begun are dropped.
    """
    with ThreadPoolExecutor(_with_open_files(workers or usable_cores())) as pool, Counter(title, len(jobs)) as counter:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for done in counter.each(as_completed(futures)):
                if not isinstance(done.exception(), UnreadableImageError):
                    done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    failures = [str(future.exception()) for future in futures if future.exception()]
    return [future.result() for future in futures if not future.exception()], failures


def _with_open_files(workers: int) -> int:
    """As many of the threads as can open files at the same time."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return workers
    used = 10
    with suppress(OSError):  # there is no such folder on some systems
        used = len(os.listdir("/dev/fd"))
    return max(1, min(workers, (limit - used) // FILES_PER_THREAD))


def usable_cores() -> int:
    """The number of cores that this process may run on. Under slurm it is smaller than that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_one_line(complaints: Sequence[str]) -> str:
    """Join messages; only the first `MOST_SHOWN` are shown."""
    more = f"; and {len(complaints) - MOST_SHOWN} more" if len(complaints) > MOST_SHOWN else ""
    return "; ".join(complaints[:MOST_SHOWN]) + more
