"""Verdicts on kernels for GPUs: at first use on a card they are tried, and the result is kept on disk.

Kernels that do not compile, load or agree with the reference are refused, and other kernels or the next backend serve.
A verdict is kept for the card, its driver, the version of PyTorch, the kernels' sources, and whatever else is in its
key. It lies next to the compiled kernels.
"""

import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dlgsanet.errors import brief
from dlgsanet.memory import is_out_of_memory

# Most difference from the reference in float64, relative to the largest value: ten times what the emulator shows.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
TENSOR_CORE_TOLERANCE = 5e-3  # of products with 11 bits

logger = logging.getLogger("dlgsanet")

T = TypeVar("T")


class Kernels(NamedTuple):
    """What is tried together.

    Attributes:
        name: for messages, such as "fused forward in float32".
        device: the GPU.
        tolerance: the most difference from the reference, relative to the largest value.
        sources: files that the result depends on.
        key: everything else that it depends on, apart from the card, its driver and PyTorch.
        by_doctor: `dlgsanet doctor --report` tries them again. Otherwise every process tries kernels that were refused.
    """

    name: str
    device: torch.device
    tolerance: float
    sources: tuple[Path, ...]
    key: tuple[object, ...]
    by_doctor: bool = True


class Verdict(NamedTuple):
    """What came out of the first use. It is kept as JSON."""

    reason: str | None  # why the kernels are refused
    difference: float | None  # from the reference, relative to the largest value
    seconds: float  # of compiling, loading and comparing

    def __str__(self) -> str:
        return self.reason or f"agrees with the reference to {self.difference:.1e}, {self.seconds:.2f} s at first use"


def examine(kernels: Kernels, difference: Callable[[], float], again: bool = False) -> Verdict:
    """The kept result of the first use on this card; else, or again, try the kernels now.

    Args:
        difference: runs the kernels on small calls, and returns the largest difference from the reference, relative
            to the largest value.

    Raises:
        Exception: there is too little memory, time is up (TimeoutError), or work that was started before has failed.
            That says nothing about the kernels.
    """
    path = path_on_card(kernels.device, kernels.sources, *kernels.key)
    if not again and (kept := read(path, lambda verdict: Verdict(**verdict))):
        return kept
    if kernels.device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.synchronize(kernels.device)
    started = time.perf_counter()
    reason, found, keeps = None, None, True
    try:
        found = difference()
    except Exception as error:
        if is_no_fault(error):
            raise
        reason = f"{type(error).__name__}: {brief(error, 600)}"
        keeps = not isinstance(error, OSError)  # a full disk, or a folder that cannot be written
    if found is not None and not found <= kernels.tolerance:
        reason = f"differs from the reference by {found:.1e} of the largest value, more than {kernels.tolerance:.0e}"
    if reason:
        card, _ = describe_card(kernels.device)
        advice = "; `dlgsanet doctor --report FILE` tries again" if kernels.by_doctor else ""
        reason = f"{kernels.name}: not used on {card}: {reason}{advice}"
    verdict = Verdict(reason, found, round(time.perf_counter() - started, 3))
    if keeps and (kernels.by_doctor or not reason):
        keep(json.dumps(verdict._asdict()).encode(), path)
    return verdict


def is_no_fault(error: Exception) -> bool:
    """Whether an error of kernels that are tried says nothing about them: of memory, or of a signal's handler."""
    return is_out_of_memory(error) or isinstance(error, TimeoutError)


def warn(verdict: Verdict) -> Verdict:
    """Report kernels that are refused."""
    if verdict.reason:
        logger.warning("%s", verdict.reason)
    return verdict


def largest_difference(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference of results from the reference's in float64, relative to each one's largest value."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        error = (a.cpu().double() - e).abs().max() / e.abs().max()
        worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
    return worst


def cache_folder() -> Path:
    """The folder of compiled kernels and verdicts: `dlgsanet/kernels` in the user's cache folder ($XDG_CACHE_HOME)."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in some containers: nothing is kept
        folder = Path(os.devnull)
    return folder / "dlgsanet" / "kernels"


def kept_path(suffix: str, sources: Iterable[Path], *key: object) -> Path:
    """The file for something that follows from `key` and the contents of source files."""
    text = repr((key, [path.read_bytes() for path in sources]))
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()}{suffix}"


def path_on_card(device: torch.device, sources: Iterable[Path], *key: object) -> Path:
    """The JSON file for something that was found out on a card, which follows from its driver and PyTorch too."""
    return kept_path(".json", sources, *key, *describe_card(device), torch.__version__)


def read(path: Path, make: Callable[[Any], T]) -> T | None:
    """What `make` makes of a kept JSON file; None if there is none, or it is damaged."""
    try:
        return make(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep(content: bytes, path: Path) -> None:
    """Write a file of the cache, at once or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # removed in any case; the complete file is moved
            unfinished = Path(folder, path.name)
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
    except OSError:
        pass  # a cache that cannot be written only costs time


@functools.cache
def describe_card(device: torch.device) -> tuple[str, str]:
    """The name of a GPU, with its architecture if it is NVIDIA's or AMD's, and the version of its driver."""
    if device.type == "xpu":
        gpu = torch.xpu.get_device_properties(device)
        return gpu.name, gpu.driver_version
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName  # HSA_OVERRIDE_GFX_VERSION changes it
        return f"{name} ({architecture})", f"{torch.version.hip}, {platform.release()}"  # the driver is part of Linux
    version = ctypes.c_int()  # the newest CUDA that the driver knows
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    driver = f"{version.value // 1000}.{version.value // 10 % 100}"
    return "{} (sm_{}{})".format(name, *torch.cuda.get_device_capability(device)), driver
