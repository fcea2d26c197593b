"""Which of two kernels for the same result is faster on this card: timed once for each class of sizes, kept on disk."""

import json
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from dlgsanet.ops.backends import verdicts
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.first_use import Use

WARM_UP, RUNS = 3, 15
HEAD_START = 1_000_000  # cycles, some 0.5 ms, that the GPU waits while the CPU starts what is timed

_chosen: dict["_Class", bool] = {}


class _Class(NamedTuple):
    use: Use
    size: int  # of the pixels: from 2 ** (size - 1) to 2 ** size - 1


def is_faster(use: Use, pixels: int, run: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether `run` takes less time than `other` for images with so many pixels.

    `run` is taken if PyTorch is set to deterministic algorithms, since the results of the two differ in their last
    bits. It is also taken on the CPU and, unless the answer is known, while a CUDA graph is captured.
    """
    if torch.are_deterministic_algorithms_enabled():
        return True
    kind = _Class(use, pixels.bit_length())
    if kind not in _chosen:
        if not _on_gpu(use) or torch.cuda.is_current_stream_capturing():
            return True
        _chosen[kind] = _kept_or_timed(kind, run, other)
    return _chosen[kind]


def _kept_or_timed(kind: _Class, run: Callable[[], object], other: Callable[[], object]) -> bool:
    use, card = kind.use, verdicts.describe_card(kind.use.device)
    key = ("choice", *use[:-1], kind.size, cuda_modules.compiler_version(), *card, torch.__version__)
    path = verdicts.kept_path(".json", cuda_modules.sources(), *key)
    try:
        first, second = json.loads(path.read_text())
    except (OSError, ValueError, TypeError):  # none, or not readable
        first, second = milliseconds(run, use.device), milliseconds(other, use.device)
        verdicts.keep(json.dumps([first, second]).encode(), path)
    return first <= second


def _on_gpu(use: Use) -> bool:
    return use.device.type == "cuda"


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of the GPU for `run`, without the time that the CPU needs to start it."""
    stream = torch.cuda.current_stream(device)
    times = []
    for _ in range(WARM_UP + RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(device):
            torch.cuda._sleep(HEAD_START)
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[WARM_UP:])
