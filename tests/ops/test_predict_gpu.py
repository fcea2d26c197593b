"""scripts/predict_gpu.py: what it reads from machine code, and its table for a whole network, without a GPU."""

import contextlib
import dataclasses
import importlib
import os
import re
import subprocess
import sys

import pytest
import torch

from dlgsanet.archs import replays
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import choice, cuda
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from tests.conftest import REPOSITORY

pytest.importorskip("cupy", reason="compiling kernels needs CuPy")
pytest.importorskip("triton", reason="compiling kernels needs Triton")

LISTING = """
.L_x_0:
        /*0000*/                   LDG.E.CONSTANT R2, [R4] ;
        /*0010*/                   STS.128 [R3], R4 ;
        /*0020*/              @!P1 BRA `(.L_x_0) ;
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0040*/                   LDS.64 R6, [R3] ;
        /*0050*/                   FFMA R8, R6, R7, R8 ;
        /*0060*/                   FFMA R9, R6, R7, R9 ;
        /*0070*/                   HMMA.1688.F32.TF32 R12, R16, R18, R12 ;
        /*0080*/              @!P0 BRA `(.L_x_1) ;
        /*0090*/              @!P2 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
        /*00c0*/                   NOP;
"""


@pytest.fixture
def predict_gpu(monkeypatch):
    """The script of this name."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("predict_gpu")


@pytest.mark.parametrize("package", [pytest.param("cupy", marks=pytest.mark.long), "triton"])
def test_a_missing_package_is_named_in_one_line(package):
    hide = f"import sys; sys.modules['{package}'] = None; del sys.argv[0]; import runpy; "
    run = "sys.path.insert(0, 'scripts'); runpy.run_module('predict_gpu', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hide + run, "predict_gpu", "inference"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert package in line
    assert not done.stdout


def test_the_main_loop_and_its_instructions(predict_gpu):
    lines = LISTING.splitlines()
    loop = predict_gpu.main_loop(lines)
    assert lines[loop.start] == ".L_x_1:"
    assert "BRA `(.L_x_1)" in lines[loop.stop - 1]
    counted = predict_gpu.count([lines[i] for i in loop])
    assert counted.all == 4
    assert counted.kinds == {"fma": 2, "mma": 1, "shared": 1}
    assert counted.wavefronts == 2
    assert counted.product_clocks == 1
    whole = predict_gpu.count(lines)
    assert whole.kinds == {"fma": 2, "mma": 1, "shared": 2, "global": 1, "other": 2}
    assert whole.wavefronts == 6


def test_a_kernel_without_a_loop_of_arithmetic(predict_gpu):
    lines = [line for line in LISTING.splitlines() if "P0 BRA" not in line and "P2 BRA" not in line]
    assert not predict_gpu.main_loop(lines)


def test_products_of_every_kind(predict_gpu):
    clocks = {
        "HMMA.1688.F32.TF32": 1,
        "HMMA.1684.F32.TF32": 0.5,
        "HMMA.16816.F32.BF16": 1,
        "HGMMA.64x64x8.F32.TF32": 8,
        "HGMMA.64x64x16.F32": 8,
        "FFMA": 0,
    }
    assert {name: predict_gpu.clocks_of_product(name) for name in clocks} == clocks


def test_more_of_what_limits_a_kernel_takes_longer(predict_gpu, monkeypatch):
    one, loop = (predict_gpu.count(LISTING.splitlines()) for _ in range(2))
    monkeypatch.setattr(predict_gpu, "read_code", lambda cubin, name: predict_gpu.Code(64, 0, one, loop))
    card = predict_gpu.CARDS["sm_90"]
    trips = predict_gpu.counted_trips("k", {"PARTS": 100}, [])
    small = predict_gpu.Kernel("k", b"", 10_000, 128, 0, trips, 0, 1000)
    prediction = predict_gpu.predict(small, card)
    warps = 10_000 * 4
    expected = warps * (one.all + 100 * loop.all) / (4 * card.multiprocessors * card.gigahertz * 1e9)
    assert prediction.limits[0] == pytest.approx(expected)
    assert prediction.limits[2] == 1000 / 3e12
    assert prediction.seconds == 2 * max(prediction.limits)
    assert prediction.warps == 32  # 64 registers
    assert predict_gpu.predict(small._replace(trips=1), card).seconds < prediction.seconds
    assert predict_gpu.predict(small._replace(rounds=2), card).limits[0] == pytest.approx(
        expected * (2 * one.all + 100 * loop.all) / (one.all + 100 * loop.all)
    )
    assert predict_gpu.predict(small._replace(bytes=3 * 10**9), card).seconds == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("what", "compiled", "calls", "multiplies", "fewest_starts"),
    [
        (
            "inference", {"fused_forward_mma", "gate_project", "attend_locally"}, {"gated_feed_forward": "18"},
            "fused_forward", 60,
        ),
        pytest.param(
            "training", {"fused_forward_mma", "project", "gate_project_backward"}, {"fused_grad_x_mma": "9"},
            "fused_grad_x", 300, marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_the_table_of_a_network(what, compiled, calls, multiplies, fewest_starts):
    command = [sys.executable, "scripts/predict_gpu.py", what, "--image", "64x64", "--scale", "2", "--tf32"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--architectures", "sm_90"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    header, _, *rows = [re.split(r" *\| *", line)[1:-1] for line in printed.splitlines() if line.startswith("|")]
    kernels = {name: dict(zip(header[1:], figures, strict=True)) for name, *figures in rows if "PyTorch" not in name}
    assert compiled <= kernels.keys()
    for row in kernels.values():
        assert row.pop("measured us") == ""
        figures = {column: float(figure) for column, figure in row.items()}
        assert 0 < figures["registers"] <= 255
        assert 0 < figures["warps"] <= 64
        assert figures["loop"] > 0
        assert 0 < sum(figures[kind] for kind in ("fma", "mma", "sh", "gl")) <= 102
        assert figures["predicted us"] >= max(2, 2 * max(figures[limit] for limit in ("issue", "smem", "dram")) - 1)
    assert {name: kernels[name]["calls"] for name in calls} == calls
    assert float(kernels[multiplies]["fma"]) > 80
    starts, milliseconds = re.search(r"(\d+) starts, predicted ([\d.]+) ms", printed).groups()
    assert int(starts) > fewest_starts
    assert 0 < float(milliseconds) < 20


def test_the_dynamic_convolution_next_to_the_published_one():
    command = [sys.executable, "scripts/predict_gpu.py", "convolution-backward", "--image", "48x48", "--batch", "16"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--published", "--architectures", "sm_90"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = dict(re.findall(r"^\| (fused_\w+) \| (\d)", done.stdout, re.M))
    for one, other in [("x", "x_mma"), ("z", "filters_mma"), ("expansion", "filters_mma")]:  # the faster of two ways
        assert {calls[f"fused_grad_{one}"], calls[f"fused_grad_{other}"]} == {"0", "1"}
    found = re.search(r"^as published: (\d+) starts, predicted .*; ([\d.]+) times as long$", done.stdout, re.M)
    starts, times = found.groups()
    assert int(starts) == 3  # two kernels, and the 1x1 convolution's gradients
    assert 1 < float(times) < 4


def test_on_a_gpu_each_kernel_is_measured(predict_gpu, monkeypatch, capsys):
    """After a call without the recorder, in which kernels are tried and timed as ever. No call is a replay."""
    started, recording = [], predict_gpu.recording

    class Module:
        def __init__(self, instance, device):
            self.kernels = instance.kernels

        def launch(self, kernel, *arguments):
            assert kernel in self.kernels
            started.append(kernel)

    @contextlib.contextmanager
    def noted(recorder):
        started.append("recording")
        with recording(recorder):
            assert replays.LARGEST == 0
            yield

    monkeypatch.setattr(predict_gpu, "recording", noted)
    monkeypatch.setattr(cuda_modules, "Module", Module)
    monkeypatch.setattr(cuda_modules, "load", Module)
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: 227 << 10)
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (9, 0))
    monkeypatch.setattr(first_use, "refused", lambda *use: None)
    monkeypatch.setattr(choice, "milliseconds", lambda run, device: run() or 0.012)
    with dispatch.using(dataclasses.replace(cuda.BACKEND, unsuited=cuda.refused_kernels)):
        recorder = predict_gpu.record("convolution", "Tiny", 2, torch.float32, 1, (64, 64), "sm_90", "cpu")
    once = ["pack_expansion", "fused_forward_mma"]
    assert started == [*once, "recording", *(name for name in once for _ in range(2)), *once]
    predict_gpu.print_table(recorder)
    *_, pack, forward, _, summary = capsys.readouterr().out.splitlines()
    assert [row.split("|")[-2].strip() for row in (pack, forward)] == ["12", "12"]
    assert summary.endswith("2 kernels predicted 0.00 ms, measured 0.02 ms")
