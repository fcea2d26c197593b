"""`scripts/benchmark_cpu.py`: its rows measure what their names say."""

import sys
from dataclasses import replace

import pytest
import torch

from dlgsanet import ops
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.ops.backends.native import library
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


@pytest.mark.parametrize("other", [["--quick"], ["--shares"], ["--compare", "elsewhere"]])
def test_other_measurements_do_not_replace_the_published_tables(other, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_cpu.py", *other, "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        script("benchmark_cpu").main()
    assert "--output: a folder is for the tables of a full run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not library.library_path().exists(), reason="the native libraries are not built")
def test_layers_are_measured_in_the_memory_of_a_network(monkeypatch):
    benchmark, memory = script("benchmark_cpu"), ops.KeptMemory()
    monkeypatch.setattr(benchmark, "KeptMemory", lambda: memory)
    feature_map = 4 * 48 * 80 * 80
    for title, rows, _ in benchmark.layer_groups(replace(benchmark.QUICK, width=80, height=80), ["native"]):
        rows["native"]()
        assert memory.taken >= 2 * feature_map, title
