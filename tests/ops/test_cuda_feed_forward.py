"""The gated feed-forward layer's CUDA kernels without a GPU: in the emulator against float64; how they are chosen."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet import ops
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import NO_LAYER, LayerFunctions, choice, cuda, reference
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.cuda import feed_forward, first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from tests.archs.golden_network import golden_network
from tests.archs.test_golden import CASES
from tests.ops import calls
from tests.ops.conftest import never, restart
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule
from tests.ops.test_cuda_kernels import TOLERANCE, barriers, relative_error
from tests.ops.test_cuda_layers import RAGGED, channels_last, strip

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

GRADIENT_TOLERANCE = 3e-3  # of more products, one after the other


def check_gradients(
    call: calls.Call, dtype: torch.dtype = torch.float32, layout: Callable[[Tensor], Tensor] = lambda t: t
):
    """Both kernels give the gradients of the reference in float64, and the same ones every time."""
    record, x, _ = call.map(lambda t: t.to(dtype))
    grad = calls.random_tensors(9)(*x.shape).to(dtype)
    expected = first_use._gradients(record._make(t.double() for t in record), x.double(), grad.double())
    for kernel in (feed_forward.EXACT, feed_forward.ROUNDED)[dtype != torch.float32 :]:
        got = feed_forward.gradients(record, layout(x), layout(grad), kernel)
        assert [(g.dtype, g.shape) for g in got] == [(t.dtype, t.shape) for t in (x, *record)]
        most = max(2 * TOLERANCE[dtype], GRADIENT_TOLERANCE if kernel == feed_forward.ROUNDED else 0)
        assert relative_error(got, expected) <= most, kernel


@pytest.mark.parametrize("order", ORDERS)
def test_the_gradients_follow_the_reference(emulate, order):
    """Each block has a tile, and two share the fourth one."""
    emulate(order)
    check_gradients(calls.feed_forward(RAGGED, channels=13, half=21, seed=1))


@given(tiles=st.integers(1, 2000), chunks=st.integers(1, 12), most=st.integers(1, 140))
def test_tiles_are_shared_out_in_at_most_the_time_of_whole_ones(tiles, chunks, most):
    blocks, whole, shares, of_share = feed_forward.share_out(tiles, chunks, most)
    left = tiles - whole
    assert 0 < blocks <= most
    assert left * shares <= blocks <= whole  # each block has a tile before its share
    assert not left or whole % blocks == 0
    assert (shares - 1) * of_share < chunks <= shares * of_share
    time = math.ceil(whole / blocks) + (of_share / chunks if left else 0)
    assert time <= math.ceil(tiles / most)


@pytest.mark.parametrize("channels", [48, 90])
def test_gradients_for_published_channels(emulate, channels):
    check_gradients(calls.feed_forward((1, 3, 5), channels, 20, seed=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_in_16_bits(emulate, dtype):
    check_gradients(calls.feed_forward((2, 9, 6), channels=13, half=21, seed=3), dtype)


@pytest.mark.parametrize("layout", [strip, channels_last])
def test_gradients_in_any_memory_layout(emulate, layout):
    check_gradients(calls.feed_forward((2, 4, 7), channels=13, half=5, seed=5), layout=layout)


def test_gradients_depend_on_no_order(emulate):
    """Blocks have two tiles each."""
    call = calls.feed_forward((1, 20, 17), channels=13, half=21, seed=1)
    found = []
    for order in ORDERS:
        emulate(order)
        found.append(feed_forward.gradients(call.record, call.x, call.x, feed_forward.ROUNDED))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "half"), [(48, 96), (90, 180), (96, 33), (60, 120), (3, 1), (8, 40)])
@pytest.mark.parametrize("size", [(1, 27, 20), (2, 9, 35), (1, 1, 50)], ids=str)
def test_gradients_of_every_size_and_dtype(emulate, size, channels, half, dtype):
    emulate("shuffled")
    check_gradients(calls.feed_forward(size, channels, half, seed=4), dtype)


@settings(deadline=None, max_examples=5)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 34)),
    seed=st.integers(0, 1000),
)
def test_gradients_of_any_size(size, seed):
    with pytest.MonkeyPatch.context() as patch:
        cuda.forget_plans()
        patch.setattr(cuda_modules, "multiprocessors", lambda device: 2)
        patch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "shuffled"))
        check_gradients(calls.feed_forward(size, 13, 21, seed))
    cuda.forget_plans()


@pytest.mark.parametrize("place", barriers("gated_feed_forward_backward"))
def test_a_missing_barrier_is_caught(emulate, place):
    for order in ORDERS:
        emulate(order, without_barrier=place)
        try:
            check_gradients(calls.feed_forward(RAGGED, channels=13, half=21, seed=1))
        except AssertionError:
            return
    pytest.fail("no result changed")


@pytest.mark.long
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_networks(emulate, monkeypatch, path):
    """Whole networks in float32 with the kernel."""
    kernels = dataclasses.replace(cuda.BACKEND, unsuited=lambda *call: None, timed=None)
    others = "dynamic_local_attention", "channel_attention", "dynamic_depthwise_conv", "fused_dynamic_depthwise_conv"
    kernels = dataclasses.replace(kernels, **dict.fromkeys(others))
    monkeypatch.setattr(dispatch, "BACKENDS", {name: dispatch.BACKENDS[name] for name in ("cuda", "reference")})
    monkeypatch.setattr(dispatch, "load", lambda name: kernels if name == "cuda" else reference.BACKEND)
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case).float().eval()
    with torch.no_grad():
        sample = network(torch.from_numpy(golden["input"]).float()).double().flatten()[::11].numpy()
    assert np.abs(sample - golden["output_eval_sample"]).max() <= 1e-5 * sample.std()


# How it is chosen


@pytest.fixture
def card(new_card, monkeypatch):
    """The CUDA and the torch backend on the CPU, as on a card on which the kernel was not used. It takes 2 ms of 3."""
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (8, 0))
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: 163 << 10)
    monkeypatch.setattr(cuda, "no_nvidia_gpu", lambda x: None)
    monkeypatch.setattr(cuda, "_unsuited", cuda.refused_kernels)
    monkeypatch.setattr(dispatch, "BACKENDS", {name: dispatch.BACKENDS[name] for name in ("cuda", "torch")})
    monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
    monkeypatch.setattr(first_use, "SIZES", [(1, 3, 4)])
    card = Card()
    for name, backend in (("cuda", cuda.BACKEND), ("torch", strips.BACKEND)):
        layer = LayerFunctions(*(card.recorded(name, f) for f in dataclasses.astuple(backend.gated_feed_forward)))
        card.backends[name] = dataclasses.replace(backend, gated_feed_forward=layer)
    monkeypatch.setattr(dispatch, "load", card.backends.get)
    monkeypatch.setattr(choice, "milliseconds", card.milliseconds)
    return card


class Card:
    def __init__(self):
        self.ran: list[str] = []
        self.times = {"cuda": 2.0, "torch": 3.0}
        self.backends = {}

    def recorded(self, name, infer):
        def run(layer, x):
            self.ran.append(name)
            return infer(layer, x)

        return run

    def milliseconds(self, run, device):
        run()
        return self.times[self.ran[-1]]

    def computes(self, call: calls.Call) -> str:
        """The backend whose result `ops.apply` returns."""
        with torch.no_grad():
            out = ops.apply(call.record, call.x)
            torch.testing.assert_close(out, strips.BACKEND.infer(call.record, call.x), rtol=1e-2, atol=1e-2)
        return self.ran[-1]

    def trains(self, call: calls.Call) -> str:
        """The backend by which the result of `ops.apply` is differentiable."""
        record, x, _ = call.map(lambda t: t.clone().requires_grad_())
        out = ops.apply(record, x)
        taken = self.ran[-1]
        got = torch.autograd.grad(out, (x, *record), call.x)
        torch.testing.assert_close(got, first_use._gradients(call.record, call.x, call.x), rtol=1e-2, atol=1e-2)
        return taken


def small(height: int = 3, **other) -> calls.Call:
    return calls.feed_forward((1, height, 4), channels=4, half=3, seed=7, **other)


def test_the_faster_way_is_used_and_timed_once_per_card(emulate, card, monkeypatch):
    assert card.computes(small()) == "cuda"
    card.times["cuda"] = 4
    restart()
    assert card.computes(small()) == "cuda"  # as kept on disk
    assert card.computes(small(height=12)) == "torch"  # another class of sizes
    monkeypatch.setattr(choice, "milliseconds", never)
    assert card.computes(small(height=12)) == "torch"


def test_weights_that_are_frozen_have_times_of_their_own(emulate, card):
    assert card.computes(small()) == "cuda"
    card.times["cuda"] = 4
    layer = GDFN(4, 0.75).eval()
    ops.freeze(layer)
    assert card.computes(calls.Call(layer.record(), small().x)) == "torch"


@pytest.mark.parametrize(
    "state", ["torch.are_deterministic_algorithms_enabled", "dlgsanet.ops.backends.choice._in_capture"]
)
def test_what_may_not_be_timed_runs_as_before(emulate, card, monkeypatch, state):
    monkeypatch.setattr(state, lambda *_: True)
    assert card.computes(small()) == "torch"


def test_the_faster_way_trains(emulate, card, monkeypatch):
    """It is timed apart from calls without gradients, once."""
    assert card.trains(small()) == "cuda"
    card.times["cuda"] = 4
    assert card.computes(small()) == "torch"
    assert card.trains(small()) == "cuda"
    assert card.trains(small(height=12)) == "torch"
    restart()
    monkeypatch.setattr(choice, "milliseconds", never)
    assert card.trains(small(height=12)) == "torch"


def test_training_that_does_not_fit_is_left_to_the_next_backend(emulate, card, monkeypatch):
    """In the shared memory of smaller GPUs."""
    call = calls.feed_forward((1, 3, 4), 48, 3, seed=8)
    assert card.backends["cuda"].refuses(call.record, call.x, training=True) is None
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: 99 << 10)
    assert card.backends["cuda"].refuses(call.record, call.x, training=True) == NO_LAYER
    assert card.backends["cuda"].refuses(call.record, call.x) is None
    assert cuda.no_tensor_cores(feed_forward.BACKWARD[feed_forward.EXACT], torch.float32, call.x.device, 48)


def test_gradients_that_disagree_are_refused_with_a_warning(emulate, card, monkeypatch, caplog):
    class Wrong(EmulatedModule):
        def launch(self, kernel, *call):
            super().launch(kernel, *call)
            if kernel == "add_rows":
                call[4].mul_(1.01)

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Wrong(instance, "ascending"))
    assert card.trains(small()) == "torch"
    assert card.computes(small()) == "cuda"
    assert "gated feed-forward backward in float32: not used on A card" in caplog.text


def test_the_layer_in_training_keeps_x_and_its_parameters(emulate):
    call, kept = small().map(Tensor.requires_grad_), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cuda.BACKEND.train(call.record, call.x)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (call.x, *call.record)}


def test_gradients_under_autocast(emulate):
    """Products may be in TF32. The backward pass is outside."""
    call = small().map(Tensor.requires_grad_)
    with torch.autocast("cpu", torch.bfloat16):
        out = cuda.BACKEND.train(call.record, call.x)
    got = torch.autograd.grad(out, (call.x, *call.record), call.x.detach())
    want = first_use._gradients(*call.map(lambda t: t.detach().double())[:2], call.x.detach().double())
    assert 1e-5 < relative_error(got, want) <= GRADIENT_TOLERANCE


def test_older_gpus_are_left_to_the_next_backend(card, monkeypatch):
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (7, 5))
    assert card.backends["cuda"].refuses(*small()[:2]) == NO_LAYER
