"""`scripts/benchmark_cpu.py`: its rows measure what their names say."""

import pytest
import torch

from dlgsanet.archs.mhdlsa import MHDLSA
from tests.conftest import script


@pytest.mark.parametrize("row", ["naive", "reference"])
def test_only_the_naive_row_unfolds(row, monkeypatch):
    benchmark = script("benchmark_cpu")
    calls, unfolded = [], benchmark.unfolded
    monkeypatch.setattr(benchmark, "unfolded", lambda *call: calls.append(call) or unfolded(*call))
    layer, x = MHDLSA(12).eval(), torch.rand(2, 12, 9, 8)
    result = benchmark.serve(row, lambda: layer(x))()
    assert len(calls) == (row == "naive")
    benchmark.serve(row, benchmark.convolution(row, 1, 8, 8))()
    assert len(calls) == 2 * (row == "naive")
    torch.testing.assert_close(result, benchmark.serve("torch", lambda: layer(x))())
