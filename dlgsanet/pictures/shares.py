"""Pictures shared among jobs and among devices: every picture is done once.

Which of N jobs does a picture follows from the place of its result below the output folder alone, so jobs agree without
a list or a lock, whatever they find when they start. Within a job, devices take pictures one after the other.
"""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dlgsanet.errors import UserError
from dlgsanet.pictures.find_files import Job
from dlgsanet.signals import end_with_the_main_process
from dlgsanet.startup import prepare_standard_streams

Work = TypeVar("Work")
Result = TypeVar("Result")


class Shard(NamedTuple):
    """Part number `part`, from 1 on, of `parts`."""

    part: int
    parts: int

    def has(self, result: Path) -> bool:
        """Whether the work that writes `result`, relative to the output folder, is in this part."""
        digest = hashlib.blake2b(os.fsencode(result), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.parts == self.part - 1


def read_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard "I/N", or "slurm": that of this task of a slurm job array.

    Raises:
        ValueError: it is neither, or this is no task of a job array.
    """
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
        if missing := [name for name in names if not environment.get(name, "").isdigit()]:
            raise ValueError(f"slurm: {' and '.join(missing)} not set; submit with sbatch --array=0-7")
        number, count = (int(environment[name]) for name in names)
        first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{n}", d)) for n, d in (("MIN", "0"), ("STEP", "1")))
        index = (number - first) // max(1, step) + 1
    else:
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"{text!r} is not I/N, such as 1/4, or slurm")
        index, count = map(int, parts)
    if not 1 <= index <= count:
        raise ValueError(f"{index}/{count}: the first number goes from 1 to the second")
    return Shard(index, count)


def done_on_devices(
    devices: Sequence[str], begin: Callable[[str], None], work: Callable[[Work], Result], jobs: Sequence[Work]
) -> Iterator[tuple[Work, Result]]:
    """Do jobs on several devices, a process each; yield each job with its result, in the order in which they finish.

    Args:
        devices: as PyTorch names them; a device can be named twice.
        begin: called with its device once in each process. It must not raise.
        work: called with each job. As `begin`, a function of a module, or a `partial` of one.

    Raises:
        UserError: a process was killed.
        What `work` raises.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Not forked from this process, because CUDA does not survive a fork.
    context = get_context("forkserver")
    context.set_forkserver_preload([getattr(begin, "func", begin).__module__])
    free = context.Queue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(len(devices), context, _begin, (begin, free, len(devices))) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError("a process was killed, short of memory? run it again for the rest") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[[str], None], free: Any, processes: int) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as for the main process, in a script's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C comes here too, and would end a picture, not the work
    prepare_standard_streams()
    import torch

    from dlgsanet.memory import PROCESSES

    os.environ[PROCESSES] = str(processes)
    end_with_the_main_process()  # else it would wait for work forever
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    begin(free.get())


def upscale_on_devices(devices: Sequence[str], options: dict[str, Any], jobs: list[Job]) -> tuple[list[str], list[int]]:
    """Upscale files on several devices.

    Args:
        devices: as for `done_on_devices`.
        options: for `load_model` (weights, scale, precision), and those of `FileUpscaler` other than the network.
        jobs: files, no streams.

    Returns:
        A line for each file that failed; the `low_qualities` of `FileUpscaler`.

    Raises:
        UserError: a process was killed. What was written is whole.
    """
    numbered = [(job, number, len(jobs)) for number, job in enumerate(jobs, 1)]
    failures, qualities = [], []
    for _, (failed, low) in done_on_devices(devices, partial(_load, options=options), _upscale, numbered):
        failures += failed
        qualities += low
    return failures, qualities


_upscaler: Any = None  # of this process, or the error with which it did not begin


def _load(device: str, options: dict[str, Any]) -> None:
    global _upscaler
    from dlgsanet.inference.loading import load_model
    from dlgsanet.pictures.upscale_files import FileUpscaler, failure_line

    rest = dict(options)
    try:
        network = load_model(rest.pop("weights"), rest.pop("scale"), device, rest.pop("precision"))
        _upscaler = FileUpscaler(network=network, **rest)
    except Exception as error:
        _upscaler = failure_line(device, error)


def _upscale(numbered: tuple[Job, int, int]) -> tuple[list[str], list[int]]:
    job, number, count = numbered
    if isinstance(_upscaler, str):
        return [f"{job.name}: {_upscaler}"], []
    _upscaler.low_qualities.clear()
    return _upscaler.run([job], number, count), _upscaler.low_qualities
