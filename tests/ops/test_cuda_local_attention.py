"""The CUDA kernels of local attention without a GPU, in the emulator, against float64."""

import functools
import sys

import pytest
import torch
from torch import Tensor

from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.cuda import local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.records import map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, LastBlocks
from tests.ops.test_cuda_kernels import TOLERANCE, relative_error, sparse, sparse_image
from tests.ops.test_cuda_layers import DTYPES, RAGGED, check_layer

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

check = functools.partial(check_layer, local_attention)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_follow_the_reference(emulate, dtype, order):
    """Two rounds of groups, of which the last has one. Filters are applied by products for bfloat16."""
    emulate(order, capability=(8, 6) if dtype == torch.float16 else (9, 0))
    check(calls.local_attention(RAGGED, 5, share=2, squeezed=3, window_size=7, seed=1), dtype)
    check(calls.local_attention((2, 16, 6), 5, share=2, squeezed=3, window_size=7, seed=1), dtype)


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", [(8, 6, 12, 7), (15, 6, 22, 7), (16, 6, 23, 5), (9, 4, 8, 3), (3, 2, 16, 7)], ids=str)
@pytest.mark.parametrize("size", [(1, 27, 20), (2, 9, 35), (1, 1, 50)], ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6)], ids=str)
def test_every_size_and_dtype(emulate, capability, size, layer, dtype, order):
    emulate(order, capability=capability)
    check(calls.local_attention(size, *layer, seed=4), dtype)


def test_strips_where_memory_is_short(emulate, monkeypatch):
    monkeypatch.setattr(planar, "rows_of_strip", lambda x, floats: 5)
    check(calls.local_attention((1, 18, 5), 2, 3, squeezed=2, window_size=7, seed=6))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's sparse memory")
def test_images_of_over_2_31_pixels(emulate, monkeypatch):
    """The last tile of a plane of 2.2e9 pixels is right; the part of the projection that it needs is computed."""
    height, width, corner, last = 50407, 42887, 80, 7  # pixels that hold values, and that lie in the last tile

    class Last(LastBlocks):
        def launch(self, kernel, blocks, *call):
            count = 4 if kernel == "local_attention" else 12 * width // 128  # rows of pixels
            self.run(kernel, blocks - count, count, *call[:2], list(call[2:]))

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Last(instance, "ascending"))
    monkeypatch.setattr(planar, "rows_of_strip", lambda x, floats: height)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: sparse(*shape, dtype=dtype))
    record = map_tensors(calls.local_attention((1, 1, 1), 1, 2, squeezed=1, window_size=3, seed=6).record, Tensor.half)
    x = sparse_image(2, height, width, corner)
    assert x[0, 0].numel() > 2**31
    with torch.no_grad():
        out = local_attention.dynamic_local_attention(record, x)[..., -last:, -last:]
        exact = map_tensors(record, Tensor.double)
        expected = reference.BACKEND.infer(exact, x[..., -corner:, -corner:].double())[..., -last:, -last:]
    assert relative_error((out,), (expected,)) <= TOLERANCE[torch.float16]
