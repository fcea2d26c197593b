"""The CUDA kernels of local attention without a GPU, in the emulator, against float64."""

import functools
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet import ops
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.cuda import local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.records import map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule, LastBlocks
from tests.ops.test_cuda_kernels import TOLERANCE, barriers, relative_error, sparse, sparse_image
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


@pytest.mark.parametrize(("groups", "squeezed"), [(8, 12), (15, 22)])
def test_published_sizes(emulate, groups, squeezed):
    emulate()
    check(calls.local_attention((1, 5, 19), groups, 6, squeezed, window_size=7, seed=2))


@settings(deadline=None, max_examples=5)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 34)),
    layer=st.sampled_from([(1, 6, 1, 3), (5, 4, 16, 5)]),  # each is compiled; fewer channels may have no variance
    seed=st.integers(0, 1000),
)
def test_any_size(size, layer, seed):
    with pytest.MonkeyPatch.context() as patch:
        local_attention.plan.cache_clear()
        patch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "shuffled"))
        check(calls.local_attention(size, *layer, seed))
    local_attention.plan.cache_clear()


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


@pytest.mark.parametrize("place", barriers("local"))
def test_a_missing_barrier_is_caught(emulate, place):
    """Some are only seen in float32, where lanes do not wait at products first."""
    for dtype, order in itertools.product((torch.float32, torch.bfloat16), ORDERS):
        emulate(order, without_barrier=place)
        try:
            check(calls.local_attention(RAGGED, 9, share=2, squeezed=3, window_size=7, seed=1), dtype)
        except AssertionError:
            return
    pytest.fail("no result changed")


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


def test_frozen_weights_are_packed_once_and_again_when_they_change(emulate, monkeypatch):
    layer, x, packed = MHDLSA(12, 3, 6).eval(), torch.randn(1, 12, 5, 6), []
    pack = local_attention.pack
    monkeypatch.setattr(local_attention, "pack", lambda *call: packed.append(call) or pack(*call))
    ops.freeze(layer)
    with torch.no_grad():
        for times in (1, 2):
            for _ in range(2):
                out = local_attention.dynamic_local_attention(layer.record(), x)
                torch.testing.assert_close(out, reference.BACKEND.infer(layer.record(), x))
            assert len(packed) == times
            for parameter in layer.parameters():
                parameter.mul_(1.5)
