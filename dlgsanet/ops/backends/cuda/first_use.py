"""The first use of a kernel on a GPU: it is compiled, loaded, and compared with the reference on small random calls.

A kernel that does not compile, load or agree is refused, and another kernel or backend serves. The result is kept on
disk next to the compiled kernels, for the card, its driver, and the sources.
"""

import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlgsanet.memory import is_out_of_memory
from dlgsanet.ops import autocast
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import Convolution, DynamicConv, FusedDynamicConv

# Most difference from the reference in float64, relative to the largest value: ten times what the emulator shows.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
TENSOR_CORE_TOLERANCE = 5e-3  # of products with 11 bits

# (batch, height, width): rows that can be moved in whole quads and ragged tiles, and rows that cannot.
SIZES = [(1, 27, 20), (2, 9, 35)]

logger = logging.getLogger("dlgsanet")


class Use(NamedTuple):
    """A kernel, or those of a backward pass, with what they are compiled for."""

    path: str  # a key of `cuda.PATHS`
    dtype: torch.dtype
    window: int
    channels: int  # that share a filter
    features: int  # of z; 0 if filters are given
    device: torch.device


def use_of(path: str, dtype: torch.dtype, layer: tuple[int, int, int, int], device: torch.device) -> Use:
    """The use of a kernel by a layer: (channels, groups, features, window)."""
    channels, groups, features, window = layer
    return Use(path, dtype, window, channels // groups, 0 if path.startswith("plain") else features, device)


class Verdict(NamedTuple):
    """What came out of the first use. It is kept as JSON."""

    reason: str | None  # why the kernel is refused
    difference: float | None  # from the reference, relative to the largest value
    seconds: float  # of compiling, loading and comparing

    def __str__(self) -> str:
        return self.reason or f"agrees with the reference to {self.difference:.1e}, {self.seconds:.2f} s at first use"


Run = Callable[[Any, Tensor, Tensor], tuple[Tensor, ...]]  # (record, x, gradient of the result)


def refused(use: Use, run: Run) -> str | None:
    """Why a kernel is not used, or None; cheap after its first use."""
    return _verdict(use, run).reason


@functools.cache
def _verdict(use: Use, run: Run) -> Verdict:
    verdict = examine(use, run)
    if verdict.reason:
        logger.warning("%s", verdict.reason)
    return verdict


def examine(use: Use, run: Run, again: bool = False) -> Verdict:
    """The kept result of the first use on this card; else, or again, try the kernel now.

    Raises:
        RuntimeError: a CUDA graph is captured.
    """
    cuda_modules.require_no_capture()
    card, driver = cuda_modules.describe_card(use.device)
    path = cuda_modules.kept_path(".json", use[:-1], card, driver, torch.__version__)
    if not again:
        try:
            return Verdict(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # none, or not readable
            pass
    started = time.perf_counter()
    reason, difference = None, None
    try:
        difference = _difference(use, run)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    most = TENSOR_CORE_TOLERANCE if use.path.endswith("tensor cores") else 0
    most = max(most, TOLERANCE[use.dtype])
    if difference is not None and not difference <= most:
        reason = f"differs from the reference by {difference:.1e} of the largest value, more than {most:.0e}"
    if reason:
        reason = f"the kernel for {use.path} in {str(use.dtype).removeprefix('torch.')} is not used on {card}: {reason}"
    verdict = Verdict(reason, difference, round(time.perf_counter() - started, 3))
    cuda_modules.keep(json.dumps(verdict._asdict()).encode(), path)
    return verdict


@torch.no_grad()
def _difference(use: Use, run: Run) -> float:
    worst = 0.0
    with autocast.off(use.device.type):
        for batch, height, width in SIZES:
            convolution, x, grad = _random_call(use, batch, height, width)
            actual = run(_map(convolution, lambda t: t.to(use.device)), x.to(use.device), grad.to(use.device))
            exact = _map(convolution, Tensor.double)
            expected = _reference(exact, x.double(), grad.double(), backward="backward" in use.path)
            for a, e in zip(actual, expected, strict=True):
                error = (a.cpu().double() - e).abs().max() / e.abs().max()
                worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
    return worst


def _random_call(use: Use, batch: int, height: int, width: int) -> tuple[Convolution, Tensor, Tensor]:
    """A convolution of two groups, x, and a gradient of the result, on the CPU."""
    generator, groups, taps = torch.Generator().manual_seed(0), 2, use.window**2

    def random(*shape: int, dtype: torch.dtype = use.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, grad = (random(batch, groups * use.channels, height, width) for _ in range(2))
    if not use.features:
        return DynamicConv(random(batch, groups, use.window, use.window, height, width)), x, grad
    wide = reference.accumulation_dtype(use.dtype)
    weight = random(groups * taps, use.features, dtype=wide) / use.features**0.5
    bias = random(groups * taps, dtype=wide)
    return FusedDynamicConv(random(batch, use.features, height, width), weight, bias, use.window), x, grad


def _map(convolution: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return convolution._make(function(f) if isinstance(f, Tensor) else f for f in convolution)


def _reference(convolution: Convolution, x: Tensor, grad: Tensor, backward: bool) -> tuple[Tensor, ...]:
    if backward:
        return reference.BACKEND.convolve_backward(convolution, x, grad)
    return (reference.BACKEND.convolve(convolution, x),)
