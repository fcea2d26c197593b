"""The CUDA kernels of channel attention without a GPU, in the emulator, against float64."""

import functools
import sys

import pytest
import torch
from torch import Tensor

from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.cuda import channel_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, LastBlocks
from tests.ops.test_cuda_kernels import TOLERANCE, relative_error, sparse, sparse_image
from tests.ops.test_cuda_layers import DTYPES, RAGGED, check_layer

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")


def attention(size: calls.Size, heads: int, share: int, window: int | None, seed: int) -> calls.Call:
    return calls.channel_attention(size, heads, share, "relu", window, seed)


check = functools.partial(check_layer, channel_attention)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_follow_the_reference(emulate, dtype, order):
    """Two heads in a chunk, of which the last chunk has one; a tile has up to nine cells."""
    emulate(order)
    check(attention(RAGGED, 3, 5, window=None, seed=1), dtype)
    check(attention((2, 20, 21), 3, 5, window=9, seed=1), dtype)
    check(attention((1, 12, 18), 3, 5, window=3, seed=1), dtype)


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "share"), [(6, 8), (6, 15), (6, 16), (6, 10), (9, 3)])
@pytest.mark.parametrize(("size", "window"), [((1, 27, 20), 12), ((2, 9, 35), None), ((1, 50, 66), 48)], ids=str)
def test_every_size_and_dtype(emulate, size, window, heads, share, dtype, order):
    emulate(order)
    check(attention(size, heads, share, window, seed=4), dtype)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's sparse memory")
def test_images_of_over_2_31_pixels(emulate, monkeypatch):
    """The last window of a plane of 2.2e9 pixels, which overlaps no other and lies in the last tile, is right."""
    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: LastBlocks(instance, "ascending"))
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: sparse(*shape, dtype=dtype))
    record = attention((1, 1, 1), 1, 3, window=7, seed=6).record
    record = map_tensors(record, Tensor.half)
    x = sparse_image(3, 7201 * 7, 6127 * 7, corner=28)
    assert x[0, 0].numel() > 2**31
    with torch.no_grad():
        out = channel_attention.channel_attention(record, x)[..., -7:, -7:]
        corner = x[..., -28:, -28:].double()
        expected = reference.BACKEND.infer(map_tensors(record, Tensor.double), corner)[..., -7:, -7:]
    assert relative_error((out,), (expected,)) <= TOLERANCE[torch.float16]
