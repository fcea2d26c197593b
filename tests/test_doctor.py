"""`dlgsanet doctor` as a user calls it."""

import torch

from dlgsanet.cli import main


def test_doctor_reports_the_backend_of_every_layer_and_why(capsys, monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    assert main(["doctor"]) == 0
    forced = capsys.readouterr().out
    assert "fused_dynamic_depthwise_conv, training on cpu, float32: torch" in forced
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
