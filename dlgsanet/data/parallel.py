"""The same work on many images, on all cores, with a progress bar; bad images are gathered, not fatal."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from dlgsanet.data.images import UnreadableImageError
from dlgsanet.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def usable_cores() -> int:
    """The cores that this process may run on, not those of the whole machine (they differ under slurm)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: int | None = None
) -> tuple[list[Result], list[str]]:
    """`work(job)` in worker processes (both must pickle).

    Returns:
        The results in the order of the jobs, and one line for each job whose image could not be used.

    Raises:
        UserError: from `work`, at once (a full disk is full for all jobs), or a worker was killed.
    """
    with ProcessPoolExecutor(min(workers or usable_cores(), max(1, len(jobs)))) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for done in tqdm(as_completed(futures), title, len(jobs), disable=None):
                if not isinstance(done.exception(), UnreadableImageError):
                    done.result()
        except BrokenProcessPool:
            raise UserError(f"{title}: a worker was killed, short of memory? try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)
    failures = [str(future.exception()) for future in futures if future.exception()]
    return [future.result() for future in futures if not future.exception()], failures
