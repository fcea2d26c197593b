"""The same work on many images, on all cores, with a progress bar; bad images are gathered, not fatal.

Threads are enough: Pillow's coders and the products in `resize` run outside Python's lock.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

from dlgsanet.data.images import UnreadableImageError

Job = TypeVar("Job")
Result = TypeVar("Result")


def for_each(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: int | None = None
) -> tuple[list[Result], list[str]]:
    """`work(job)` for every job; `workers` threads, by default one for each core this process may use.

    Returns:
        The results in the order of the jobs, and one line for each job whose image could not be used.

    Raises:
        What `work` raises, other than `UnreadableImageError`: at once, jobs not yet begun are dropped.
    """
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for done in tqdm(as_completed(futures), title, len(jobs), disable=None):
                if not isinstance(done.exception(), UnreadableImageError):
                    done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    failures = [str(future.exception()) for future in futures if future.exception()]
    return [future.result() for future in futures if not future.exception()], failures


def usable_cores() -> int:
    """The cores that this process may run on, not those of the whole machine (they differ under slurm)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_one_line(complaints: Sequence[str], most: int = 20) -> str:
    """Many complaints as one error message, that of a wrong folder kept readable."""
    more = f"; and {len(complaints) - most} more" if len(complaints) > most else ""
    return "; ".join(complaints[:most]) + more
