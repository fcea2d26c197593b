"""What holds for the CUDA kernels of every layer, without a GPU: in the emulator against float64; what they take."""

import copy
import itertools
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet import ops
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.ops.backends import NO_LAYER, cuda, reference
from dlgsanet.ops.backends.cuda import channel_attention, feed_forward, first_use, halo_tile, local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.records import Record, map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule, LastBlocks
from tests.ops.test_cuda_kernels import TOLERANCE, barriers, relative_error, sparse, sparse_image

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

TF32_TOLERANCE = 2e-3  # of a projection of products of 11 bits, filtered, gated and projected again: mostly 4e-4
RAGGED = (1, 9, 17)  # four tiles, three of which are mostly outside the image
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

SMALL = {
    feed_forward: lambda size: calls.feed_forward(size, channels=13, half=5, seed=5),
    channel_attention: lambda size: calls.channel_attention(size, 3, 5, "relu", window=3, seed=5),
    local_attention: lambda size: calls.local_attention(size, 3, share=2, squeezed=2, window_size=3, seed=5),
}


def title(value: object) -> str:
    """In the name of a test."""
    return getattr(value, "EXACT", str(value))


of_every_layer = pytest.mark.parametrize("layer", SMALL, ids=title)


def check_layer(
    layer: ModuleType,
    call: calls.Call,
    dtype: torch.dtype = torch.float32,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
):
    """The kernels of a module of the CUDA backend, exact and rounded, give what the reference gives in float64."""
    record, x, _ = call.map(lambda t: t.to(dtype))
    with torch.no_grad():
        expected = reference.BACKEND.infer(map_tensors(record, Tensor.double), x.double())
        for path in (layer.EXACT, layer.ROUNDED):
            if path == layer.EXACT and dtype != torch.float32:
                continue
            (out,) = cuda.PATHS[path](record, layout(x), x)
            assert out.dtype == dtype
            most = max(TOLERANCE[dtype], TF32_TOLERANCE if path == layer.ROUNDED else 0)
            assert relative_error((out,), (expected,)) <= most, path


def strip(x: Tensor) -> Tensor:
    """Rows of a taller image."""
    tall = torch.full((*x.shape[:2], x.shape[2] + 3, x.shape[3]), torch.nan)
    tall[:, :, 2:-1] = x
    return tall[:, :, 2:-1]


def misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@of_every_layer
@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("layout", [strip, misaligned, channels_last])
def test_any_memory_layout(emulate, layer, layout, width):
    call = SMALL[layer]((2, 4, width))
    assert layout(call.x).data_ptr() % 8 or layout(call.x).stride() != call.x.stride()
    check_layer(layer, call, layout=layout)


@of_every_layer
@pytest.mark.parametrize("rounded", [False, True])
def test_nan_is_kept(emulate, layer, rounded):
    """As GPUs form it: all bits but the sign."""
    record, x, _ = SMALL[layer](RAGGED)
    x.view(torch.int32)[0, :, 4, 6] = 0x7FFFFFFF
    with torch.no_grad():
        (out,) = cuda.PATHS[layer.ROUNDED if rounded else layer.EXACT](record, x, x)
        expected = reference.BACKEND.infer(record, x).isnan()
    assert expected.sum() >= 9 * x.shape[1]  # filters pass it on
    assert out[expected].isnan().all()


@of_every_layer
def test_products_are_as_exact_as_pytorch_is_set(emulate, layer, monkeypatch):
    """Under autocast they may be in TF32; the result has the dtype of x."""
    call = SMALL[layer]((1, 5, 6))
    assert layer.path(call.x) == layer.EXACT
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer.path(call.x) == layer.ROUNDED
        assert layer.takes(call.record, call.x)
        assert not layer.takes(*call.map(Tensor.half)[:2])
        out = cuda.BACKEND.infer(call.record, call.x)
    assert out.dtype == torch.float32
    assert relative_error((out,), (reference.BACKEND.infer(*call.map(Tensor.double)[:2]),)) <= TF32_TOLERANCE
    monkeypatch.setattr("dlgsanet.ops.tf32.allowed_in_matrix_products", lambda: True)
    assert layer.path(call.x) == layer.ROUNDED


MADE = {
    feed_forward: calls.feed_forward,
    channel_attention: calls.channel_attention,
    local_attention: calls.local_attention,
}
# What `MADE` takes between the size of the image and the seed. Each is compiled.
PUBLISHED = {
    feed_forward: [(48, 20), (90, 20)],
    channel_attention: [(6, 8, "relu", 4), (6, 15, "relu", 4)],
    local_attention: [(8, 6, 12, 7), (15, 6, 22, 7)],
}
FEW = {
    feed_forward: [(1, 3), (8, 40), (13, 21)],
    channel_attention: [(*heads, "relu", window) for heads in ((3, 5), (1, 16)) for window in (None, 3, 11)],
    local_attention: [(1, 6, 1, 3), (5, 4, 16, 5)],  # fewer channels may have no variance
}


@pytest.mark.parametrize(
    ("layer", "sizes"), [(layer, sizes) for layer, both in PUBLISHED.items() for sizes in both], ids=title
)
def test_published_sizes(emulate, layer, sizes):
    check_layer(layer, MADE[layer]((1, 5, 19), *sizes, seed=2))


@of_every_layer
@settings(deadline=None, max_examples=5)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 34)), seed=st.integers(0, 1000), data=st.data()
)
def test_any_size(layer, size, seed, data):
    sizes = data.draw(st.sampled_from(FEW[layer]))
    with pytest.MonkeyPatch.context() as patch:
        cuda.forget_plans()
        patch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "shuffled"))
        check_layer(layer, MADE[layer](size, *sizes, seed))
    cuda.forget_plans()


# Chunks and rounds of which the last one is not full; a tile has up to nine cells of channel attention.
FOLLOWED = {
    feed_forward: [(RAGGED, 13, 21), ((2, 16, 6), 13, 21)],
    channel_attention: [
        (RAGGED, 3, 5, "relu", None), ((2, 20, 21), 3, 5, "relu", 9), ((1, 12, 18), 3, 5, "relu", 3)
    ],
    local_attention: [(RAGGED, 5, 2, 3, 7), ((2, 16, 6), 5, 2, 3, 7)],
}  # fmt: skip
RAGGED_SIZES = [(1, 27, 20), (2, 9, 35), (1, 1, 50)]
HEADS = [(6, 8), (6, 15), (6, 16), (6, 10), (9, 3)]
MANY = {
    feed_forward: [(size, *c) for size in RAGGED_SIZES for c in ((48, 96), (90, 180), (96, 33), (60, 120))],
    channel_attention: [
        (size, *heads, "relu", window)
        for size, window in (((1, 27, 20), 12), ((2, 9, 35), None), ((1, 50, 66), 48))
        for heads in HEADS
    ],
    local_attention: [
        (size, *layer)
        for size in RAGGED_SIZES
        for layer in ((8, 6, 12, 7), (15, 6, 22, 7), (16, 6, 23, 5), (9, 4, 8, 3), (3, 2, 16, 7))
    ],
}


@of_every_layer
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_follow_the_reference(emulate, layer, dtype, order):
    """In float16 as on GPUs on which multiply-adds apply the filters of local attention, not products."""
    emulate(order, capability=(8, 6) if dtype == torch.float16 else (9, 0))
    for sizes in FOLLOWED[layer]:
        check_layer(layer, MADE[layer](*sizes, seed=1), dtype)


@pytest.mark.long
@pytest.mark.parametrize(
    ("layer", "sizes"), [(layer, sizes) for layer, many in MANY.items() for sizes in many], ids=title
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_and_dtype(emulate, layer, sizes, dtype, order):
    emulate(order, capability=(8, 6) if order == "shuffled" else (8, 0))
    check_layer(layer, MADE[layer](*sizes, seed=4), dtype)


def test_strips_where_memory_is_short(emulate, monkeypatch):
    monkeypatch.setattr(planar, "rows_of_strip", lambda x, floats: 5)
    check_layer(local_attention, calls.local_attention((1, 18, 5), 2, 3, squeezed=2, window_size=7, seed=6))


# Sizes of a layer; height and width of a plane of 2.2e9 pixels; how many pixels at its lower right hold values, in
# each direction, and how many lie in the last tile, or in a window that overlaps no other.
LARGE = {
    feed_forward: ((2, 3), 50408, 42888, 80, 7),
    channel_attention: ((1, 3, "relu", 7), 7201 * 7, 6127 * 7, 28, 7),
    local_attention: ((1, 2, 1, 3), 50407, 42887, 80, 7),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's sparse memory")
@pytest.mark.parametrize(
    "layer", [pytest.param(k, marks=[pytest.mark.long] * (k != feed_forward), id=k.EXACT) for k in LARGE]
)
def test_images_of_over_2_31_pixels(emulate, monkeypatch, layer):
    """The last tile is right."""
    sizes, height, width, corner, last = LARGE[layer]

    class Last(LastBlocks):
        def launch(self, kernel, blocks, *call):
            if kernel.startswith("pack"):
                EmulatedModule.launch(self, kernel, blocks, *call)
            elif kernel == "local_projection":  # of the rows that the last tile needs
                count = 12 * width // 128
                self.run(kernel, blocks - count, count, *call[:2], list(call[2:]))
            else:
                super().launch(kernel, blocks, *call)

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Last(instance, "ascending"))
    monkeypatch.setattr(planar, "rows_of_strip", lambda x, floats: height)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: sparse(*shape, dtype=dtype))
    record = map_tensors(MADE[layer]((1, 1, 1), *sizes, seed=6).record, Tensor.half)
    x = sparse_image(len(record.norm_weight), height, width, corner)
    assert x[0, 0].numel() > 2**31
    with torch.no_grad():
        out = cuda.BACKEND.infer(record, x)[..., -last:, -last:]
        exact = map_tensors(record, Tensor.double)
        expected = reference.BACKEND.infer(exact, x[..., -corner:, -corner:].double())[..., -last:, -last:]
    assert relative_error((out,), (expected,)) <= TOLERANCE[torch.float16]


# Values in two chunks or rounds, or more.
WITH_EVERY_BARRIER = {
    feed_forward: (13, 21),
    channel_attention: (6, 9, "relu", 8),
    local_attention: (9, 2, 3, 7),
}
SOURCES = {feed_forward: "gated_feed_forward.cu", channel_attention: "channel_attention", local_attention: "local"}


@pytest.mark.parametrize(
    ("layer", "place"), [(layer, place) for layer, source in SOURCES.items() for place in barriers(source)], ids=title
)
def test_a_missing_barrier_is_caught(emulate, layer, place):
    """Some are only seen in float32, where lanes do not wait at products first, others only in bfloat16."""
    for dtype, order in itertools.product((torch.float32, torch.bfloat16), ORDERS):
        emulate(order, without_barrier=place)
        try:
            check_layer(layer, MADE[layer](RAGGED, *WITH_EVERY_BARRIER[layer], seed=1), dtype)
        except AssertionError:
            return
    pytest.fail("no result changed")


@pytest.mark.parametrize(("kernels", "layer"), [(feed_forward, GDFN(4, 0.75)), (local_attention, MHDLSA(12, 3, 6))])
def test_frozen_weights_are_packed_once_and_again_when_they_change(emulate, monkeypatch, kernels, layer):
    layer, x, packed = copy.deepcopy(layer).eval(), torch.randn(1, len(layer.record().norm_weight), 5, 6), []
    make = kernels.derived
    monkeypatch.setattr(
        kernels, "derived", lambda pack, *of, **how: make(lambda: packed.append(1) or pack(), *of, **how)
    )
    ops.freeze(layer)
    with torch.no_grad():
        for times in (1, 2):
            for _ in range(2):
                out = cuda.BACKEND.infer(layer.record(), x)
                torch.testing.assert_close(out, reference.BACKEND.infer(layer.record(), x))
            assert len(packed) == times
            for parameter in layer.parameters():
                parameter.mul_(1.5)
        cuda.PATHS[kernels.ROUNDED](layer.record(), x, x)
    assert len(packed) == 3


@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [
        (local_attention.EXACT, torch.float32),
        *((local_attention.ROUNDED, dtype) for dtype in DTYPES),
        (channel_attention.ROUNDED, torch.bfloat16),
    ],
)
def test_first_use_compares_the_kernels_with_the_reference(emulate, monkeypatch, kernels, dtype):
    """Those of the gated feed-forward layer: `test_cuda_feed_forward.py`."""
    monkeypatch.setattr(first_use, "SIZES", [(1, 13, 14)])
    use = first_use.use_of(kernels, dtype, (12, 6, 3, 7), torch.device("cpu"))
    most = TF32_TOLERANCE if kernels in cuda.ROUNDED_LAYERS else 0
    assert first_use._difference(use, cuda.PATHS[kernels]) <= max(most, TOLERANCE[dtype])

    def wrong(layer: Record, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return cuda.PATHS[kernels](layer._replace(proj_out=1.5 * layer.proj_out), x, grad)

    assert first_use._difference(use, wrong) > 0.02


OF_EVERY_LAYER = {
    "float64": lambda call: call.map(Tensor.double),
    "another dtype": lambda call: call._replace(x=call.x.half()),
    "weights of another dtype": lambda call: call._replace(x=call.x.float()),
}
NOT_TAKEN = {
    feed_forward: {
        "too many channels": lambda call: calls.feed_forward((1, 3, 4), halo_tile.MOST_CHANNELS + 1, 3, seed=8),
    },
    channel_attention: {
        "top-k": lambda call: call._replace(record=call.record._replace(activation="topk")),
        "softmax": lambda call: call._replace(record=call.record._replace(activation="softmax")),
        "too many channels": lambda call: calls.channel_attention((1, 5, 6), 7, 14, "relu", 4, seed=8),
        "too large heads": lambda call: calls.channel_attention((1, 5, 6), 2, 17, "relu", 4, seed=8),
    },
    local_attention: {
        "too many channels": lambda call: calls.local_attention((1, 5, 6), 17, 6, 3, 7, seed=8),
        "too many channels share a filter": lambda call: calls.local_attention((1, 5, 6), 2, 8, 3, 7, seed=8),
        "groups of an odd size in 16 bits": lambda call: calls.local_attention((1, 5, 6), 2, 3, 3, 7, 8).map(
            Tensor.half
        ),
        "too many features": lambda call: calls.local_attention((1, 5, 6), 2, 6, 24, 7, seed=8),
        "a large window": lambda call: calls.local_attention((1, 5, 6), 2, 6, 3, 9, seed=8),
    },
}


@pytest.mark.parametrize(
    ("layer", "change"),
    [(layer, change) for layer, more in NOT_TAKEN.items() for change in (OF_EVERY_LAYER | more).values()],
    ids=[f"{layer.EXACT}: {what}" for layer, more in NOT_TAKEN.items() for what in OF_EVERY_LAYER | more],
)
def test_what_the_kernels_do_not_take_is_left_to_the_next_backend(layer, change):
    call = SMALL[layer]((1, 5, 6)).map(Tensor.bfloat16)
    changed = change(call)
    assert cuda.no_layer(call.record, call.x) is None
    assert cuda.BACKEND.timed(call.record, call.x)
    assert cuda.no_layer(changed.record, changed.x) == NO_LAYER
