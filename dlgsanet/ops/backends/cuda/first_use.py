"""The first use of a kernel on a GPU: it is compiled, loaded, and compared with the reference on small random calls."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import reference, verdicts
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.verdicts import (
    TENSOR_CORE_TOLERANCE,
    TOLERANCE,
    Kernels,
    Verdict,
    largest_difference,
    warn,
)
from dlgsanet.ops.records import Convolution, DynamicConv, FusedDynamicConv

# (batch, height, width): rows that can be moved in whole quads and ragged tiles, and rows that cannot.
SIZES = [(1, 27, 20), (2, 9, 35)]


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


Run = Callable[[Any, Tensor, Tensor], tuple[Tensor, ...]]  # (record, x, gradient of the result)


def refused(use: Use, run: Run) -> str | None:
    """Why a kernel is not used, or None; cheap after its first use."""
    return _verdict(use, run).reason


@functools.cache
def _verdict(use: Use, run: Run) -> Verdict:
    return warn(examine(use, run))


def examine(use: Use, run: Run, again: bool = False) -> Verdict:
    """The kept result of the first use on this card; else, or again, try the kernel now.

    Raises:
        RuntimeError: a CUDA graph is captured.
    """
    cuda_modules.require_no_capture()
    name = f"{use.path} in {str(use.dtype).removeprefix('torch.')}"
    most = max(TOLERANCE[use.dtype], TENSOR_CORE_TOLERANCE if use.path.endswith("tensor cores") else 0)
    sources = (*cuda_modules.sources(), *sorted(Path(__file__).parent.glob("*.py")))
    kernels = Kernels(name, use.device, most, sources, (*use[:-1], cuda_modules.compiler_version()))
    return verdicts.examine(kernels, lambda: _difference(use, run), again)


@torch.no_grad()
def _difference(use: Use, run: Run) -> float:
    worst = 0.0
    with autocast.off(use.device.type):
        for batch, height, width in SIZES:
            convolution, x, grad = _random_call(use, batch, height, width)
            actual = run(_map(convolution, lambda t: t.to(use.device)), x.to(use.device), grad.to(use.device))
            exact = _map(convolution, Tensor.double)
            expected = _reference(exact, x.double(), grad.double(), backward="backward" in use.path)
            worst = max(worst, largest_difference(actual, expected))
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
