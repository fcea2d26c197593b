"""A folder of pictures shared among jobs and among devices: every picture is done once.

Which of N jobs does a picture follows from the picture's name alone, so jobs agree without a list or a lock, whatever
they find when they start. Within a job, devices take pictures one after the other.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dlgsanet.errors import UserError
from dlgsanet.pictures.find_files import Job


class Shard(NamedTuple):
    """Part number `part`, from 1 on, of `parts`."""

    part: int
    parts: int

    def has(self, job: Job) -> bool:
        return zlib.crc32(os.fsencode(job.target)) % self.parts == self.part - 1


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


def upscale_on_devices(devices: Sequence[str], options: dict[str, Any], jobs: list[Job]) -> list[str]:
    """Do jobs on several devices, a process each; return a line for each one that failed.

    Args:
        devices: as PyTorch names them; a device can be named twice.
        options: for `load_model` (weights, scale, precision), and those of `FileUpscaler` other than the network.
        jobs: files, no streams.

    Raises:
        UserError: a process was killed. What was written is whole.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Not forked from this process, because CUDA does not survive a fork.
    context = get_context("forkserver")
    free = context.Queue()
    for device in devices:
        free.put(device)
    failures = []
    with ProcessPoolExecutor(len(devices), context, _begin, (free, len(devices), options)) as pool:
        futures = [pool.submit(_do, job, number, len(jobs)) for number, job in enumerate(jobs, 1)]
        try:
            for future in as_completed(futures):
                failures += future.result()
        except BrokenProcessPool:
            raise UserError("a process was killed, short of memory? run it again for the rest") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


_upscaler: Any = None  # of this process, or the error with which it did not begin


def _begin(free: Any, processes: int, options: dict[str, Any]) -> None:
    global _upscaler
    import torch

    from dlgsanet.inference.loading import load_model
    from dlgsanet.pictures.upscale_files import FileUpscaler, failure_line

    device = free.get()
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    rest = dict(options)
    try:
        network = load_model(rest.pop("weights"), rest.pop("scale"), device, rest.pop("precision"))
        _upscaler = FileUpscaler(network=network, **rest)
    except Exception as error:
        _upscaler = failure_line(device, error)


def _do(job: Job, number: int, count: int) -> list[str]:
    if isinstance(_upscaler, str):
        return [f"{job.name}: {_upscaler}"]
    failures: list[str] = _upscaler.run([job], number, count)
    return failures
