"""`dlgsanet doctor` as a user calls it."""

import re
from importlib.metadata import version

import pytest
import torch

from dlgsanet import device as devices
from dlgsanet.cli import main
from dlgsanet.ops.backends import cuda, triton, verdicts
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules


def test_doctor_reports_the_backend_of_every_layer_and_why(capsys, monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    assert main(["doctor"]) == 0
    forced = capsys.readouterr().out
    assert "  every layer, training on cpu, float32: torch\n" in forced
    monkeypatch.delenv("DLGSANET_BACKEND")
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert all(title in report for title in ("packages", "processors", "allocator", "layers"))
    assert ("cuda: " in report) == torch.cuda.is_available()  # the backend, as a reason


def test_doctor_answers_a_wrong_backend_in_one_line(capsys, monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "metal")
    assert main(["doctor"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "DLGSANET_BACKEND" in message
    assert "'metal'" in message


def test_doctor_tries_nothing_for_a_report_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert main(["doctor", "--report", str(tmp_path / "notes.txt/report.txt")]) == 2
    said = capsys.readouterr()
    assert "notes.txt/report.txt: Not a directory" in said.err
    assert not said.out


def test_doctor_reports_settings_that_are_not_utf8(monkeypatch, tmp_path):
    monkeypatch.setenv("DLGSANET_NOTE", "caf\udce9")
    assert main(["doctor", "--report", str(tmp_path / "report.txt")]) == 0
    assert "DLGSANET_NOTE=caf\\udce9" in (tmp_path / "report.txt").read_text()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU, as far as `doctor` looks: its kernels agree, but that of fused forward passes in float16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def difference(use, run):
        return 0.1 if (use.path, use.dtype) == ("fused forward", torch.float16) else 1e-7 * (use.dtype != torch.float64)

    monkeypatch.setattr(devices, "accelerators", lambda: iter([torch.device("cuda", 0)]))
    monkeypatch.setattr(devices, "describe_accelerator", lambda gpu: "An untried card, 80.0 GiB")
    monkeypatch.setattr(cuda, "unusable", lambda gpu: None)
    monkeypatch.setattr(cuda_modules, "capability", lambda gpu: (9, 0))
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda gpu: 227 << 10)
    monkeypatch.setattr(verdicts, "describe_card", lambda gpu: ("An untried card", "13.0"))
    monkeypatch.setattr(cuda_modules, "require_no_capture", lambda: None)
    monkeypatch.setattr(first_use, "_difference", difference)
    monkeypatch.setattr(triton, "_difference", lambda dtype, gpu: 0.1 if dtype == torch.float16 else 1e-13)
    monkeypatch.setattr("dlgsanet.commands.doctor._layers", lambda: iter(["left out: there are no tensors on a GPU"]))


def test_doctor_shows_every_kernel_and_writes_a_report(gpu, capsys, monkeypatch, tmp_path):
    assert main(["doctor", "--report", str(tmp_path / "report.txt")]) == 0
    printed = capsys.readouterr().out
    assert "An untried card, 80.0 GiB" in printed
    assert f"Triton kernels\n  Triton {version('triton')}\n  cuda:0" in printed
    kernels = re.findall("^  cuda:0, (.*?), (.*?), (\\d+) channels: (.*)$", printed, re.M)
    assert {(path, dtype, channels) for path, dtype, channels, _ in kernels} == {
        (path, str(dtype)[6:], channels)
        for path in cuda.PATHS
        for dtype in cuda_modules.SCALARS
        for channels in ("48", "90")
    }
    faulty = [verdict for path, dtype, _, verdict in kernels if (path, dtype) == ("fused forward", "float16")]
    assert all("1.0e-01" in verdict and "An untried card" in verdict for verdict in faulty)
    # float64 has no tensor cores, and rounded factors are exact enough for 16 bits
    unused = 2 * (4 + 8 + 2 * 6)
    assert sum("agrees" in verdict for *_, verdict in kernels) == len(kernels) - 2 - unused
    layers = dict(re.findall("^  cuda:0, (\\w+): (.*)$", printed, re.M))
    assert set(layers) == {str(dtype)[6:] for dtype in verdicts.TOLERANCE}
    assert "1.0e-01" in layers.pop("float16")
    assert all("agrees" in verdict for verdict in layers.values())
    report = (tmp_path / "report.txt").read_text()
    assert report.strip() in printed
    assert "PyTorch built with" in report

    def never(use, run):
        raise AssertionError("it is run again")

    monkeypatch.setattr(first_use, "_difference", never)
    monkeypatch.setattr(triton, "_difference", never)
    assert main(["doctor"]) == 0  # shows what is kept
    assert "it is run again" not in capsys.readouterr().out
    assert main(["doctor", "--report", str(tmp_path / "again.txt")]) == 0  # tries again
    assert capsys.readouterr().out.count("it is run again") == len(kernels) - unused + len(verdicts.TOLERANCE)


def test_doctor_does_not_try_kernels_that_the_environment_leaves_out(gpu, capsys, monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "-triton")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "Triton kernels\n  not used: DLGSANET_BACKEND=-triton\n" in printed
    assert "cuda:0, fused forward, float32" in printed
