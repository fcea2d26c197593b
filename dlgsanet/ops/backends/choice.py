"""Which of two ways to the same result is faster on this card: timed once for each class of sizes, kept on disk."""

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlgsanet.errors import brief
from dlgsanet.ops.backends import verdicts

logger = logging.getLogger("dlgsanet")

WARM_UP, RUNS = 3, 15
HEAD_START = 1_000_000  # cycles, some 0.5 ms, that an NVIDIA GPU waits while the CPU starts what is timed

COMPARED = 2**24  # values of a result; all of a large one would need too much memory

_chosen: dict[tuple["Choice", int], bool] = {}
_untimed = False


@dataclass(frozen=True, eq=False)  # compared by identity, which is fast
class Choice:
    """What is chosen. Make it once: its answers are kept for this object.

    Attributes:
        name: of the other way, for messages.
        device: where it computes.
        sources: files that the times depend on.
        key: everything else that they depend on, apart from the card, its driver, PyTorch and the number of pixels.
    """

    name: str
    device: torch.device
    sources: tuple[Path, ...]
    key: tuple[object, ...]


def is_faster(choice: Choice, pixels: int, run: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """Whether `run` takes less time than `other` for images with so many pixels: from a power of two to the next.

    Before they are timed, `other` is tried. If it fails or the results differ, a warning says so and `run` is taken.

    `run` is taken if PyTorch is set to deterministic algorithms, since the results of the two differ in their last
    bits. It is also taken on the CPU and, unless the answer is known, while a CUDA graph is captured.
    """
    if _untimed or torch.are_deterministic_algorithms_enabled():
        return True
    kind = choice, pixels.bit_length()
    if kind not in _chosen:
        if not _on_gpu(choice.device) or _in_capture(choice.device):
            return True
        _chosen[kind] = _kept_or_timed(*kind, run, other)
    return _chosen[kind]


@contextmanager
def untimed() -> Iterator[None]:
    """Within the block `is_faster` times nothing and answers yes."""
    global _untimed
    before, _untimed = _untimed, True
    try:
        yield
    finally:
        _untimed = before


def _kept_or_timed(choice: Choice, size: int, run: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    path = verdicts.path_on_card(choice.device, choice.sources, "choice", *choice.key, size)
    times = verdicts.read(path, _two_numbers)
    if times is None:
        if problem := _problem(run, other):
            logger.warning("%s: not used on %s: %s", choice.name, verdicts.describe_card(choice.device)[0], problem)
            return True
        times = milliseconds(run, choice.device), milliseconds(other, choice.device)
        verdicts.keep(json.dumps(times).encode(), path)
    return times[0] <= times[1]


def _two_numbers(values: list[float]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)


def _problem(run: Callable[[], Tensor], other: Callable[[], Tensor]) -> str | None:
    """Why `other` cannot be used, or None."""
    try:
        actual = other().flatten()[:COMPARED]
    except Exception as error:
        if verdicts.is_no_fault(error):
            raise
        return f"{type(error).__name__}: {brief(error)}"
    expected = run().flatten()[:COMPARED].float()
    largest, difference = expected.abs().max().item(), (actual.float() - expected).abs().max().item()
    most = max(verdicts.TOLERANCE[actual.dtype], verdicts.TENSOR_CORE_TOLERANCE) * largest
    if difference <= most or not math.isfinite(largest):
        return None
    return f"the result differs by {difference:.1e}, more than {most:.1e}"


def _on_gpu(device: torch.device) -> bool:
    return device.type in ("cuda", "xpu")


def _in_capture(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median GPU time of `run` in milliseconds; on NVIDIA GPUs without the time in which the CPU starts it."""
    module = getattr(torch, device.type)
    times = []
    with module.device(device):
        for _ in range(WARM_UP + RUNS):
            start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
            if hasattr(module, "_sleep"):
                module._sleep(HEAD_START)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times[WARM_UP:])
