"""The CUDA kernels without a GPU: their source runs in the emulator, against float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dlgsanet.ops import cuda, cuda_modules, reference
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

# Largest error over the largest value: of sums formed in float32 (or float64), then rounded to the dtype.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# (batch, channels, groups, features, window, height, width): sizes of the published networks, every window size, ragged
# and tiny images, images whose rows are whole quads, groups and features of more than one pass.
SHAPES = [
    (2, 12, 2, 12, 7, 19, 37),
    (1, 12, 2, 22, 7, 33, 36),
    (1, 6, 1, 30, 5, 5, 3),
    (1, 11, 1, 3, 9, 30, 20),
    (3, 6, 3, 5, 3, 1, 1),
]
# Two passes over the features, two parts of a group's channels, two groups, several tiles.
WITH_EVERY_BARRIER = (1, 24, 2, 26, 3, 25, 17)


@pytest.fixture
def emulate(monkeypatch) -> Callable[..., None]:
    """Have the launches of `cuda` run in the emulator, with threads in an order, a barrier left out."""

    def use(order: str = "ascending", without_barrier: int = 0, shared_memory: int = 99 << 10) -> None:
        monkeypatch.setattr(cuda_modules, "load", lambda i, device: EmulatedModule(i, order, without_barrier))
        monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: shared_memory)

    return use


def fused_arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    batch, channels, groups, features, window, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    master = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    outputs = groups * window**2
    return (
        normal(batch, channels, height, width).to(dtype),
        normal(batch, features, height, width).to(dtype),
        (normal(outputs, features) / features**0.5).to(master),
        normal(outputs).to(master),
        window,
    )


def fused_results(backend, *arguments) -> tuple[Tensor, ...]:
    """The output and all gradients, for a gradient of the output that is not the same everywhere."""
    x = arguments[0]
    grad = x.roll(1, dims=1)
    out = backend.fused_dynamic_depthwise_conv(*arguments)
    return out, *backend.fused_dynamic_depthwise_conv_backward(grad, *arguments)


def barriers(source: str) -> list[int]:
    """Lines of a kernel's source that hold a barrier."""
    lines = (cuda_modules.KERNELS / source).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if "__syncthreads()" in line]


def in_float64(arguments):
    return [a.double() if isinstance(a, Tensor) else a for a in arguments]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_is_the_definition(emulate, shape, dtype):
    arguments = fused_arguments(shape, dtype)
    expected = fused_results(reference, *in_float64(arguments))
    for order in ORDERS:
        emulate(order)
        for actual, right in zip(fused_results(cuda, *arguments), expected, strict=True):
            assert_close(actual, right, TOLERANCE[dtype])


@pytest.mark.parametrize("line", barriers("fused.cu"))
def test_a_missing_barrier_of_the_fused_kernels_is_caught(emulate, line):
    arguments = fused_arguments(WITH_EVERY_BARRIER, torch.float32)
    expected = fused_results(reference, *in_float64(arguments))
    caught = set()
    for order in ORDERS:
        emulate(order, without_barrier=line)
        for i, (actual, right) in enumerate(zip(fused_results(cuda, *arguments), expected, strict=True)):
            try:
                assert_close(actual, right, TOLERANCE[torch.float32])
            except AssertionError:
                caught.add(i)
    assert caught
