"""The compiled layers: random calls against the float64 reference, on every instruction set that this machine has."""

import pytest
import torch
from hypothesis import Phase, given, settings

from dlgsanet import ops
from dlgsanet.ops.backends.native import BACKEND as native  # noqa: N811
from dlgsanet.ops.backends.native import build, differentiable, library
from dlgsanet.ops.backends.reference import BACKEND as reference  # noqa: N811
from dlgsanet.ops.backends.torch import strip_rows
from dlgsanet.ops.constants import CONVOLVED_ROWS
from dlgsanet.ops.records import FusedDynamicConv
from tests.ops import calls

TOLERANCE = 2e-6  # of the output's range
GRADIENT_TOLERANCE = 1e-5  # for weights, which are sums over thousands of pixels in float32
_WORDS = {"AVX512": "avx512", "AVX2": "avx2"}
_ALL = list(build.instruction_sets())
AVAILABLE = _ALL[_ALL.index(_WORDS.get(torch.backends.cpu.get_cpu_capability(), "portable")) :]


@pytest.fixture(scope="module", autouse=True)
def _built():
    if problem := build.build(build.HERE):
        pytest.skip(problem)


@pytest.mark.parametrize("name", calls.RANDOM)
def test_random_calls_follow_the_reference(name):
    check_random_calls(name, 3)


@pytest.mark.long
@pytest.mark.parametrize("name", calls.RANDOM)
def test_200_random_calls_follow_the_reference(name):
    check_random_calls(name, 200)


def check_random_calls(name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(calls.RANDOM[name])
    def check(make):
        _assert_follows_reference(make())

    check()


def _assert_follows_reference(call: calls.Call) -> None:
    assert native.refuses(*call) is None
    want = calls.results(reference, call.map(torch.Tensor.double))
    margins = _margins(call, want)
    for name in AVAILABLE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "instruction_set", lambda name=name: name)
            got = calls.results(native, call)
        for g, w, margin in zip(got, want, margins, strict=True):
            assert g.shape == w.shape
            assert ((g - w).abs() <= margin).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_convolution_adds_to_a_feature_map_in_place(with_bias, dtype, factor):
    record, x, _ = calls.convolution((2, 9, 40), 5, 7, with_bias, 0, factor, around=factor > 1).map(
        lambda t: t.to(dtype)
    )
    record = record._replace(to=None)
    features = torch.randn(2, 7, factor * 9, factor * 40, dtype=dtype)
    for to in (features.clone(), features.mT.contiguous().mT):  # contiguous, and not
        ops.add_convolution(record, x, to)
        assert to.equal(features + ops.apply(record, x))


def test_a_convolution_of_strips_of_rows_is_that_of_the_image():
    record, x, _ = calls.convolution((1, 90, 30), 16, 16, True, seed=0)
    whole = ops.apply(record, x, backend="native")
    assert CONVOLVED_ROWS == 4
    for top, bottom in ((0, 32), (28, 60), (60, 90)):
        first = max(top - 4, 0)
        part = ops.apply(record, x[:, :, first : bottom + 1], backend="native")
        assert part[:, :, top - first : bottom - first].equal(whole[:, :, top:bottom])


@pytest.mark.parametrize("size", [(2, 9, 40), (1, 70, 300), (3, 48, 48)], ids=str)  # (batch, height, width)
def test_a_feed_forward_network_gives_the_same_bits_whether_it_keeps_its_projection_or_not(monkeypatch, size):
    call = calls.feed_forward(size, 24, 50, seed=0, training=True)
    kept = calls.results(native, call)
    monkeypatch.setattr(differentiable, "fits", lambda x, bytes_per_value: False)
    again = calls.results(native, call)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


def test_a_feed_forward_network_keeps_its_input_alone_where_memory_is_short(monkeypatch):
    call = calls.feed_forward((2, 40, 60), 24, 50, seed=0, training=True)

    def kept() -> int:
        largest = []
        pack = lambda tensor: largest.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ops.apply(call.record, call.x.requires_grad_(), backend="native")
        return max(largest)

    assert kept() == 2 * 40 * 100 * 64
    strip_rows._fits.cache_clear()
    monkeypatch.setattr(strip_rows, "free_memory", lambda device: 10 << 20)
    assert kept() == call.x.numel()
    strip_rows._fits.cache_clear()


def _margins(call: calls.Call, want: list[torch.Tensor]) -> list[torch.Tensor]:
    """The largest allowed error of each result."""
    if call.training and isinstance(call.record, FusedDynamicConv):
        # Sums over all pixels may cancel. Their error is relative to the sum of magnitudes.
        added = calls.results(reference, call.map(lambda t: t.double().abs()))
        return [share * a for share, a in zip((TOLERANCE,) * 2 + (GRADIENT_TOLERANCE,) * 2, added, strict=True)]
    out, *gradients = want
    largest = max((g.abs().max() for g in gradients), default=None)  # gradients of a few pixels may cancel to zero
    return [TOLERANCE * out.abs().max(), *(GRADIENT_TOLERANCE * largest for _ in gradients)]
