"""The CUDA kernels of channel attention without a GPU: in the emulator against float64, and which calls they take."""

import functools
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import NO_LAYER, choice, cuda, reference, verdicts
from dlgsanet.ops.backends.cuda import channel_attention, first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule, LastBlocks
from tests.ops.test_cuda_feed_forward import TF32_TOLERANCE, channels_last, check_layer, misaligned
from tests.ops.test_cuda_kernels import TOLERANCE, barriers, relative_error, sparse, sparse_image

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

RAGGED = (1, 9, 17)  # four tiles, three of which are mostly outside the image


def attention(size: calls.Size, heads: int, share: int, window: int | None, seed: int) -> calls.Call:
    return calls.channel_attention(size, heads, share, "relu", window, seed)


check = functools.partial(check_layer, channel_attention)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_kernels_follow_the_reference(emulate, dtype, order):
    """Two heads in a chunk, of which the last chunk has one; a tile has up to nine cells."""
    emulate(order)
    check(attention(RAGGED, 3, 5, window=None, seed=1), dtype)
    check(attention((2, 20, 21), 3, 5, window=9, seed=1), dtype)
    check(attention((1, 12, 18), 3, 5, window=3, seed=1), dtype)


@pytest.mark.parametrize("channels", [48, 90])
def test_published_channels(emulate, channels):
    check(attention((1, 5, 19), 6, channels // 6, window=4, seed=2))


@settings(deadline=None, max_examples=5)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 34)),
    heads=st.sampled_from([(3, 5), (1, 16)]),  # each is compiled
    window=st.none() | st.integers(3, 30),
    seed=st.integers(0, 1000),
)
def test_any_size(size, heads, window, seed):
    with pytest.MonkeyPatch.context() as patch:
        channel_attention.plan.cache_clear()
        patch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "shuffled"))
        check(attention(size, *heads, window, seed))
    channel_attention.plan.cache_clear()


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "share"), [(6, 8), (6, 15), (6, 16), (6, 10), (9, 3)])
@pytest.mark.parametrize(("size", "window"), [((1, 27, 20), 12), ((2, 9, 35), None), ((1, 50, 66), 48)], ids=str)
def test_every_size_and_dtype(emulate, size, window, heads, share, dtype, order):
    emulate(order)
    check(attention(size, heads, share, window, seed=4), dtype)


@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("layout", [misaligned, channels_last])
def test_any_memory_layout(emulate, layout, width):
    check(attention((2, 4, width), 3, 5, window=3, seed=5), layout=layout)


@pytest.mark.parametrize("place", barriers("channel_attention"))
def test_a_missing_barrier_is_caught(emulate, place):
    """Values in two chunks or more. Some are only seen where the filters are products, at which lanes wait."""
    for dtype, order in itertools.product((torch.bfloat16, torch.float32), ORDERS):
        emulate(order, without_barrier=place)
        try:
            check(attention(RAGGED, 6, 9, window=8, seed=1), dtype)
        except AssertionError:
            return
    pytest.fail("no result changed")


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


# Which calls are computed by the kernels


@pytest.fixture
def card(monkeypatch, tmp_path):
    """The CUDA and the torch backend on the CPU, as on a card on which the kernels were not used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (8, 6))
    monkeypatch.setattr(verdicts, "describe_card", lambda device: ("A card (sm_86)", "12.9"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda, "no_nvidia_gpu", lambda x: None)
    monkeypatch.setattr(cuda, "_unsuited", cuda.refused_kernels)
    monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
    monkeypatch.setattr(first_use, "SIZES", [(1, 13, 14)])
    caches = (first_use._verdict, dispatch._choice, dispatch._report_once)
    for cache in caches:
        cache.cache_clear()
    choice._chosen.clear()
    with dispatch.using("cuda", "torch"):
        yield
    for cache in caches:
        cache.cache_clear()
    choice._chosen.clear()


def small() -> calls.Call:
    return attention((1, 5, 6), 3, 5, window=4, seed=7).map(Tensor.bfloat16)


@pytest.mark.parametrize(("milliseconds", "faster"), [(2.0, "cuda"), (4.0, "torch")])
def test_the_faster_way_is_used(emulate, card, monkeypatch, milliseconds, faster):
    times = iter([3.0, milliseconds])  # of the next backend, then of the kernels
    monkeypatch.setattr(choice, "milliseconds", lambda run, device: (run(), next(times))[1])
    call = small()
    backend = dispatch.select(call.record, call.x)
    assert backend.name == "cuda"
    with torch.no_grad():
        assert dispatch.faster(backend, call.record, call.x).name == faster


def test_kernels_that_disagree_are_refused_with_a_warning(emulate, card, monkeypatch, caplog):
    class Wrong(EmulatedModule):
        def launch(self, kernel, *call):
            super().launch(kernel, *call)
            if kernel == "attention_values":
                call[8].mul_(1.2)

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Wrong(instance, "ascending"))
    call = small()
    assert dispatch.select(call.record, call.x).name == "torch"
    assert "channel attention with rounded factors in bfloat16: not used on A card" in caplog.text


CHANGES = {
    "float64": lambda call: call.map(Tensor.double),
    "weights of another dtype": lambda call: call._replace(x=call.x.float()),
    "another dtype": lambda call: call._replace(x=call.x.half()),
    "top-k": lambda call: call._replace(record=call.record._replace(activation="topk")),
    "softmax": lambda call: call._replace(record=call.record._replace(activation="softmax")),
    "too many channels": lambda call: attention((1, 5, 6), 7, 14, 4, seed=8).map(Tensor.bfloat16),
    "too large heads": lambda call: attention((1, 5, 6), 2, 17, 4, seed=8).map(Tensor.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_kernels_do_not_take_is_left_to_the_next_backend(card, change):
    call = CHANGES[change](small())
    assert cuda.BACKEND.refuses(call.record, call.x) == NO_LAYER


def test_training_and_older_gpus_are_left_to_the_next_backend(card, monkeypatch):
    call = small()
    assert cuda.BACKEND.refuses(call.record, call.x, training=True) == NO_LAYER
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (7, 5))
    assert cuda.BACKEND.refuses(call.record, call.x) == NO_LAYER


def test_products_are_as_exact_as_pytorch_is_set(emulate, monkeypatch):
    """Under autocast they may be in TF32; the result has the dtype of x."""
    call = small().map(Tensor.float)
    assert channel_attention.path(call.x) == channel_attention.EXACT
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert channel_attention.path(call.x) == channel_attention.ROUNDED
        assert channel_attention.takes(call.record, call.x)
        assert not channel_attention.takes(*call.map(Tensor.half)[:2])
        out = channel_attention.channel_attention(call.record, call.x)
    assert out.dtype == torch.float32
    assert relative_error((out,), (reference.BACKEND.infer(*call.map(Tensor.double)[:2]),)) <= TF32_TOLERANCE
    monkeypatch.setattr("dlgsanet.ops.tf32.allowed_in_matrix_products", lambda: True)
    assert channel_attention.path(call.x) == channel_attention.ROUNDED
