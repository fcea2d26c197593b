"""SparseGSA's selection and test-time local conversion, compared with plain definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.ops import select_similarities
from dlgsanet.ops.windows import window_starts


@given(c=st.integers(1, 12), ratio=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_topk_keeps_the_largest_of_each_row_and_weights_them_by_softmax(c, ratio, seed):
    similarities = torch.randn(2, 3, c, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = select_similarities(similarities, "topk", ratio)
    kept = max(1, round(ratio * c))
    for row, weight in zip(similarities.reshape(-1, c), weights.reshape(-1, c), strict=True):
        best = sorted(range(c), key=lambda i: -row[i])[:kept]
        total = sum(math.exp(row[i]) for i in best)
        expected = [math.exp(row[i]) / total if i in best else 0.0 for i in range(c)]
        assert weight.tolist() == pytest.approx(expected)


def test_topk_breaks_ties_as_torch_does():
    tied = torch.zeros(1, 6, 6)
    kept = select_similarities(tied, "topk", 0.5).bool()
    assert torch.equal(kept, torch.zeros_like(kept).scatter(-1, tied.topk(3, -1).indices, True))


def test_topk_of_everything_is_softmax():
    similarities = torch.randn(4, 6, 6)
    torch.testing.assert_close(select_similarities(similarities, "topk", 1.0), similarities.softmax(-1))


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("gelu", F.gelu), ("sigmoid", torch.sigmoid), ("softmax", lambda s: s.softmax(-1))],
)
def test_activations(activation, function):
    similarities = torch.randn(4, 6, 6)
    assert torch.equal(select_similarities(similarities, activation), function(similarities))


@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid", "softmax", "topk"])
def test_gradients(activation):
    torch.manual_seed(0)
    layer = SparseGSA(6, heads=2, activation=activation).double()
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def published_starts(size: int, window: int) -> list[int]:
    """The positions of the published code, which computes the step in floating point."""
    window = min(size, window)
    count = (size - 1) // window + 1
    step = window if count == 1 else math.ceil((size - window) / (count - 1) - 1e-8)
    starts, at = [], 0
    while at + window < size:
        starts.append(at)
        at += step
    return [*starts, size - window]


@settings(max_examples=500)
@given(size=st.integers(1, 3000), window=st.integers(1, 200))
def test_windows_are_at_the_published_positions(size, window):
    assert window_starts(size, window) == published_starts(size, window)


@given(height=st.integers(1, 30), width=st.integers(1, 30), window=st.integers(1, 12), batch=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_tlc_is_the_average_over_overlapping_windows(height, width, window, batch):
    torch.manual_seed(0)
    layer = SparseGSA(6, heads=2, tlc_kernel=window).double()
    x = torch.randn(batch, 6, height, width, dtype=torch.float64)
    with torch.no_grad():
        qkv = layer.depthwise(layer.qkv(layer.norm(x)))
        total, count = torch.zeros_like(x), torch.zeros(height, width, dtype=torch.float64)
        for top in window_starts(height, window):
            for left in window_starts(width, window):
                place = (..., slice(top, top + window), slice(left, left + window))
                q, k, v = qkv[place].flatten(2).unflatten(1, (3, 2, 3)).unbind(1)
                similarity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * layer.temperature
                total[place] += (similarity.relu() @ v).reshape_as(total[place])
                count[place] += 1
        torch.testing.assert_close(layer.eval()(x), x + layer.proj_out(total / count), rtol=0, atol=1e-12)
