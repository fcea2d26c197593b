"""The first use of a kernel on a GPU: it is compiled, loaded, and compared with the reference on small random calls."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import reference, verdicts
from dlgsanet.ops.backends.cuda import channel_attention, feed_forward, halo_tile, local_attention, local_filters
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.dynamic_conv import FORWARD_EXACT, FORWARD_MMA
from dlgsanet.ops.backends.verdicts import (
    TENSOR_CORE_TOLERANCE,
    TOLERANCE,
    Kernels,
    Verdict,
    largest_difference,
    warn,
)
from dlgsanet.ops.records import (
    ChannelAttention,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    Layer,
    LocalAttention,
    Record,
    map_tensors,
    tensors_of,
)

# (batch, height, width): rows that can be moved in whole quads and ragged tiles, and rows that cannot.
SIZES = [(1, 27, 20), (2, 9, 35)]
WHOLE_QUADS = (FORWARD_MMA, FORWARD_EXACT)  # paths that take no other rows, and no fewer groups than a block filters
HEADS, WINDOW = 6, 12  # of channel attention: as in the published networks, and so small that windows overlap


class Use(NamedTuple):
    """A kernel, or those of a backward pass, with what they are compiled for."""

    path: str  # a key of `cuda.PATHS`
    dtype: torch.dtype
    # (window, channels that share a filter, features of z or 0) of a convolution, or `sizes` of a layer
    sizes: tuple[int, ...]
    device: torch.device


def use_of(path: str, dtype: torch.dtype, layer: tuple[int, int, int, int], device: torch.device) -> Use:
    """The use of a kernel by a network with these layers: (channels, groups, features, window)."""
    channels, groups, features, window = layer
    if path.startswith("gated"):
        return Use(path, dtype, (channels, 2 * channels), device)
    if path.startswith(channel_attention.EXACT):
        return Use(path, dtype, (channels, HEADS), device)
    if path.startswith(local_attention.EXACT):
        return Use(path, dtype, layer, device)
    return Use(path, dtype, (window, channels // groups, 0 if path.startswith("plain") else features), device)


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
    most = max(
        TOLERANCE[use.dtype], TENSOR_CORE_TOLERANCE if use.path.endswith(("tensor cores", "rounded factors")) else 0
    )
    sources = (*cuda_modules.sources(), *sorted(Path(__file__).parent.glob("*.py")))
    kernels = Kernels(name, use.device, most, sources, (*use[:-1], cuda_modules.compiler_version()))
    return verdicts.examine(kernels, lambda: _difference(use, run), again)


@torch.no_grad()
def _difference(use: Use, run: Run) -> float:
    worst, sizes = 0.0, SIZES
    if use.path in WHOLE_QUADS:
        sizes = [(batch, height, halo_tile.whole(width, 4)) for batch, height, width in sizes]
    if use.path in feed_forward.BACKWARD.values():  # and some tiles more than multiprocessors, which blocks share
        sizes = [*sizes, (cuda_modules.multiprocessors(use.device) * 9 // 8 + 1, 3, 4)]
    with autocast.off(use.device.type):
        for batch, height, width in sizes:
            record, x, grad = _random_call(use, batch, height, width)
            actual = run(map_tensors(record, lambda t: t.to(use.device)), x.to(use.device), grad.to(use.device))
            exact = map_tensors(record, Tensor.double)
            expected = _reference(exact, x.double(), grad.double(), backward="backward" in use.path)
            worst = max(worst, largest_difference(actual, expected))
    return worst


def _random_call(use: Use, batch: int, height: int, width: int) -> tuple[Record, Tensor, Tensor]:
    """A convolution of few groups or a layer, x, and a gradient of the result, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = use.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)

    if use.path.startswith("gated"):
        channels, hidden = use.sizes
        x = random(batch, channels, height, width)
        proj_in, proj_out = random(2 * hidden, channels, 1, 1), random(channels, hidden, 1, 1)
        norm = random(channels), random(channels)
        record = GatedFeedForward(*norm, proj_in / channels**0.5, random(2 * hidden, 1, 3, 3) / 3, proj_out)
        return record._replace(proj_out=proj_out / hidden**0.5), x, x
    if use.path.startswith(channel_attention.EXACT):
        channels, heads = use.sizes
        x = random(batch, channels, height, width)
        norm, weight = (random(channels), random(channels)), random(3 * channels, channels, 1, 1) / channels**0.5
        rest = random(3 * channels, 1, 3, 3) / 3, random(heads, 1, 1), random(channels, channels, 1, 1) / channels**0.5
        return ChannelAttention(*norm, weight, *rest, activation="relu", topk_ratio=1, window=WINDOW), x, x
    if use.path.startswith(local_attention.EXACT):
        channels, groups, features, window = use.sizes
        taps = window**2
        x = random(batch, channels, height, width)
        norm, proj_in = (random(channels), random(channels)), random(channels, channels, 1, 1) / channels**0.5
        squeeze = random(features, channels, 1, 1) / channels**0.5, random(features)
        spatial = random(features, 1, window, window) / window, random(features)
        filters = random(groups * taps, features, 1, 1) / features**0.5, random(groups * taps)
        proj_out = random(channels, channels, 1, 1) / channels**0.5
        return LocalAttention(*norm, proj_in, *squeeze, *spatial, *filters, proj_out, window), x, x
    (window, channels, features), groups = use.sizes, local_filters.AT_ONCE + 1 if use.path in WHOLE_QUADS else 2
    taps = window**2
    x, grad = (random(batch, groups * channels, height, width) for _ in range(2))
    if not features:
        return DynamicConv(random(batch, groups, window, window, height, width)), x, grad
    wide = reference.accumulation_dtype(use.dtype)
    weight = random(groups * taps, features, dtype=wide) / features**0.5
    bias = random(groups * taps, dtype=wide)
    return FusedDynamicConv(random(batch, features, height, width), weight, bias, window), x, grad


def _reference(record: Any, x: Tensor, grad: Tensor, backward: bool) -> tuple[Tensor, ...]:
    if isinstance(record, Layer):
        return _gradients(record, x, grad) if backward else (reference.BACKEND.infer(record, x),)
    if backward:
        return reference.BACKEND.convolve_backward(record, x, grad)
    return (reference.BACKEND.convolve(record, x),)


def _gradients(layer: Layer, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of x and of the layer's tensors, by the reference."""
    with torch.inference_mode(False), torch.enable_grad():
        x, layer = x.clone().requires_grad_(), map_tensors(layer, lambda t: t.clone().requires_grad_())
        return torch.autograd.grad(reference.BACKEND.train(layer, x), (x, *tensors_of(layer)), grad.clone())
