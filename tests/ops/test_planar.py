"""The layers of the `torch` backend for GPUs: on a CPU against the reference, and counted on the meta device."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.sizes import SIZES
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import Backend, LayerFunctions, reference
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.cuda import feed_forward
from dlgsanet.ops.backends.torch import planar, strip_rows
from dlgsanet.ops.backends.torch.frozen import KEPT, derived
from dlgsanet.ops.records import OPERATIONS, DynamicConv
from tests.conftest import script
from tests.ops import calls
from tests.ops.test_strips import decided_by_rounding

NAMES = ("dynamic_local_attention", "channel_attention", "gated_feed_forward")
FUNCTIONS = {name: getattr(planar, name) for name in NAMES}
PLANAR = Backend(name="planar", **{name: LayerFunctions(f, planar.recomputing(f)) for name, f in FUNCTIONS.items()})


@pytest.fixture(params=["free", "scarce"])
def _memory(request, monkeypatch):
    """With scarce memory strips have few rows, and training computes again what it does not keep."""
    monkeypatch.setattr(strip_rows, "free_memory", lambda device: 0 if request.param == "scarce" else 80 << 30)
    monkeypatch.setattr(strip_rows, "FEWEST_ROWS", 5)
    for planned in (strip_rows._plan, strip_rows._fits):
        planned.cache_clear()
    yield
    for planned in (strip_rows._plan, strip_rows._fits):
        planned.cache_clear()


@pytest.mark.usefixtures("_memory")
@pytest.mark.parametrize("name", [name for name in calls.RANDOM if "conv" not in name])
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_layers_follow_the_reference(name, data):
    call = data.draw(calls.RANDOM[name])().map(Tensor.double)
    assume(not decided_by_rounding(call))
    with torch.set_grad_enabled(call.training):
        got, want = calls.results(PLANAR, call), calls.results(reference.BACKEND, call)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert (g - w).abs().max() <= 1e-9 * w.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_16_bit_sums_are_exact(name, dtype):
    """Large features: sums of their squares do not fit into float16."""
    call = calls.one_of_each((1, 40, 50))[name].map(lambda t: t.to(dtype))
    with torch.no_grad():
        got = PLANAR.infer(call.record, call.x)
        want = reference.BACKEND.infer(*call.map(Tensor.double)[:2])
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= 0.05 * want.abs().max()


def test_autocast_in_recomputed_training(monkeypatch):
    monkeypatch.setattr(planar, "fits", lambda *call: False)
    call = calls.one_of_each((2, 12, 14))["gated_feed_forward, training"]
    with torch.autocast("cpu", torch.bfloat16):
        again = calls.results(PLANAR, call)
    monkeypatch.setattr(planar, "fits", lambda *call: True)
    with torch.autocast("cpu", torch.bfloat16):
        kept = calls.results(PLANAR, call)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=["autocast", "float32"])
def test_the_estimate_of_what_training_keeps_under_autocast(dtype):
    """Hidden tensors are kept in autocast's dtype, whatever the dtype of the image."""
    x, kept = torch.randn(2, 48, 64, 64, requires_grad=True), {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= 2 * 64 * 64:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", dtype, enabled=dtype is not None), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        for layer in (MHDLSA(48), GDFN(48), SparseGSA(48), GDFN(48)):
            x = PLANAR.train(layer.train().record(), x)
        estimate = planar.KEPT.bytes_of(x) * x.numel()
    mean = sum(tensor.numel() * tensor.element_size() for tensor in kept.values()) / 4
    assert mean < estimate < 1.15 * mean


def test_frozen_filters_are_prepared_once(monkeypatch):
    """The convolution gets them in the dtype of its sums, which its kernels take as they are."""
    given = []
    convolve = planar.convolve
    monkeypatch.setattr(planar, "convolve", lambda functions, *call: (given.append(call[0]), convolve(None, *call))[1])
    layer = MHDLSA(12, 3, 6).bfloat16()
    ops.freeze(layer)
    with torch.no_grad():
        for _ in range(2):
            PLANAR.infer(layer.record(), torch.randn(1, 12, 9, 10).bfloat16())
    (first, second), dtypes = given, {t.dtype for t in (given[0].weight, given[0].bias)}
    assert dtypes == {torch.float32}
    assert first.weight is second.weight
    assert first.bias is second.bias


@pytest.mark.parametrize("rows", [50, 7])
def test_sums_under_autocast_are_exact(rows, monkeypatch):
    """In one strip and in several; float16 has no room for the sums of squares."""
    call = calls.one_of_each((1, 40, 50))["channel_attention"]
    call = call._replace(record=call.record._replace(window=None, qkv_weight=30 * call.record.qkv_weight))
    monkeypatch.setattr(planar, "rows_of_strip", lambda x, floats: rows)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        got = PLANAR.infer(call.record, call.x)
    with torch.no_grad():
        want = reference.BACKEND.infer(*call.map(Tensor.double)[:2])
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


@pytest.mark.parametrize(
    "layer", [MHDLSA(12, 3, 6), SparseGSA(12, 2, tlc_kernel=4), GDFN(12)], ids=lambda m: type(m).__name__
)
def test_frozen_weights_are_noticed_when_they_change(layer: nn.Module):
    x, layer = torch.randn(1, 12, 9, 10), layer.eval()
    function = FUNCTIONS[OPERATIONS[type(layer.record())]]
    ops.freeze(layer)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(function(layer.record(), x), reference.BACKEND.infer(layer.record(), x))
            for parameter in layer.parameters():
                parameter.mul_(1.5)
    layer.double()
    with torch.no_grad():
        got, want = (f(layer.record(), x.double()) for f in (function, reference.BACKEND.infer))
    torch.testing.assert_close(got, want)


def test_threads_get_what_they_derive():
    weight = nn.Linear(1, 1).weight
    ops.freeze(nn.ParameterList([weight]))

    class Interrupted(dict):
        """Another thread derives something else after each access."""

        def get(self, name):
            found, others = super().get(name), {}
            setattr(weight, KEPT, others)
            derived(lambda: "another", weight, key=2)
            setattr(weight, KEPT, self)
            self.update(others)
            return found

    setattr(weight, KEPT, Interrupted())
    with torch.no_grad():
        assert [derived(lambda: "one", weight, key=1) for _ in range(3)] == ["one"] * 3


def test_other_devices_are_served(monkeypatch):
    for layer in (MHDLSA(12), SparseGSA(12), GDFN(12)):
        layer.to("meta")
        x = torch.empty(1, 12, 8, 8, device="meta")
        for training in (False, True):
            layer.train(training)
            assert dispatch.select(layer.record(), x, training) is strips.BACKEND
        assert layer(x).shape == x.shape
    assert dispatch.select(DynamicConv(x.new_empty(1, 2, 7, 7, 8, 8)), x) is strips.BACKEND


# Counting


@pytest.fixture(scope="module")
def count():
    yield script("count_gpu").count
    for planned in (strip_rows._plan, strip_rows._fits):
        planned.cache_clear()


def test_operators_and_bytes_without_kernels(count):
    """Commit f1178c1: 590 operators and 14.9 GB with CUDA kernels, else 1499 and 42.7 GB."""
    one, all_in_pytorch = (count("inference", "Tiny", 4, (320, 180), kernels=kernels) for kernels in (True, False))
    assert one.operators.total() <= 80
    assert one.bytes <= 1.65e9
    assert all_in_pytorch.operators.total() <= 360
    assert all_in_pytorch.bytes <= 22.7e9
    for counted in (one, all_in_pytorch):
        assert counted.layout_copies == 0
        assert torch.float64 not in counted.dtypes  # which MPS does not have


@pytest.mark.parametrize(("dtype", "gigabytes"), [(torch.float32, 1.5), (torch.bfloat16, 0.76)], ids=str)
def test_operators_and_bytes_with_triton(count, dtype, gigabytes):
    pytest.importorskip("triton")
    counted = count("inference", "Tiny", 4, (320, 180), dtype=dtype, kernels=True, triton=True)
    assert counted.operators.total() <= 72
    assert counted.bytes <= gigabytes * 1e9
    assert counted.layout_copies == 0


def test_operators_and_bytes_of_training_with_triton(count):
    """Commit b77840a: 1057 operators and 25.1 GB; without the CUDA kernels of GDFN 292 and 12.6 GB."""
    pytest.importorskip("triton")
    counted = count("training", "Tiny", 2, (64, 64), batch=16, kernels=True, triton=True)
    assert counted.operators.total() <= 280
    assert counted.bytes <= 7.4e9
    assert counted.peak <= 1.25e9
    assert counted.layout_copies == 0


def test_the_count_of_before_is_that_of_the_audit(count):
    before = count("inference", "Tiny", 4, (320, 180), kernels=True, reference=True)
    assert 570 <= before.operators.total() <= 600
    assert before.bytes == pytest.approx(14.9e9, rel=0.01)
    assert before.layout_copies > 50


@pytest.mark.parametrize(("size", "free", "gigabytes"), [("Tiny", 24, 8), ("Large", 24, 15)])
@pytest.mark.parametrize("triton", [False, True], ids=["torch", "triton"])
def test_memory_of_a_4k_image(count, size, free, gigabytes, triton):
    """One group of the network: the others need the same."""
    if triton:
        pytest.importorskip("triton")
    counted = count("inference", size, 2, (3840, 2160), kernels=True, free=free, triton=triton, groups=1, blocks=1)
    assert counted.peak < gigabytes * 1e9
    assert counted.layout_copies == 0


WAYS = {("torch", False): 1.1, ("triton", False): 1.1, ("triton", True): 1.2}
FEW_ESTIMATES = [
    ("Tiny", torch.float32, ("torch", False)), ("Large", torch.bfloat16, ("torch", False)),
    ("Large", torch.float32, ("triton", False)), ("Light", torch.bfloat16, ("triton", False)),
    ("Tiny", torch.float32, ("triton", True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "dtype", "way"),
    [
        pytest.param(*case, marks=() if case in FEW_ESTIMATES else pytest.mark.long)
        for case in itertools.product(SIZES, (torch.float32, torch.bfloat16), WAYS)
    ],
    ids=str,
)
def test_the_estimate_of_what_training_keeps(count, monkeypatch, size, dtype, way):
    """It is what the tensors that live until the backward pass need, and at most a tenth more.

    Where GDFN is trained by CUDA kernels, which keep x alone, a fifth: the other layers keep less than the mean.
    """
    kernels, of_gdfn = way
    if kernels == "triton":
        pytest.importorskip("triton")
    if not of_gdfn:
        monkeypatch.setattr(feed_forward, "takes", lambda layer, x: False)
    estimates, fits = set(), strip_rows._fits

    def noted(shape, device, bytes_per_value):
        estimates.add(math.prod(shape) * bytes_per_value)
        return fits(shape, device, bytes_per_value)

    monkeypatch.setattr(strip_rows, "_fits", noted)
    noted.cache_clear = fits.cache_clear
    counted = count("training", size, 2, (64, 64), batch=16, dtype=dtype, kernels=True, triton=kernels == "triton")
    (estimate,) = estimates
    assert counted.peak < estimate < WAYS[way] * counted.peak


def test_batches_of_the_demo_are_not_computed_again(count):
    """Tiny with 32 patches of 64x64 keeps 2.4 GB; it was computed again with less than 70 GB."""
    pytest.importorskip("triton")
    batch = {"batch": 32, "kernels": True, "triton": True}
    kept, again = (count("training", "Tiny", 2, (64, 64), free=free, **batch) for free in (7, 4))
    assert kept.peak > 1.5 * again.peak
    assert kept.operators.total() < again.operators.total()


def test_memory_of_training_large(count):
    counted = count("training", "Large", 4, (48, 48), batch=16, kernels=True, free=8)
    assert counted.peak < 8e9
    assert torch.float64 not in counted.dtypes
