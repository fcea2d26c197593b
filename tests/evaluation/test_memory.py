"""Images that do not fit into the memory of a CPU are refused before Linux ends the process."""

import pytest
import torch
import yaml
from skimage import data

from dlgsanet.cli import main
from dlgsanet.evaluation import benchmark, memory
from tests.evaluation.conftest import EDSR, save, small_weights

REFUSED = "pixels need more memory than cpu has"


@pytest.fixture
def place(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_weights(tmp_path / "A.pth")
    save(tmp_path / "lr.png", data.astronaut()[40:64, 200:230])
    return tmp_path


@pytest.fixture
def free(monkeypatch):
    """Memory in images: how many fit."""
    benchmark._network.cache_clear()  # one of another test has runs that fitted
    monkeypatch.setattr(memory, "least_memory", lambda network, shape, gradients: shape[0])
    return lambda images: monkeypatch.setattr(memory, "free_memory", lambda device: images)


@pytest.mark.parametrize("what", [["lam", "A.pth"], ["kept", "A.pth"], ["filters", "A.pth", "--points", "3,4"]])
def test_explain(place, free, what, capsys):
    free(0)
    assert main(["explain", *what, "--image", "lr.png", "--device", "cpu"]) == 2
    assert f"30x24 {REFUSED}" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["A.pth", "edsr.yml"])
def test_benchmark_divides_batches(place, free, file, capsys):
    (place / "edsr.yml").write_text(yaml.safe_dump({"name": "EDSR", "scale": 2, "network_g": EDSR}))
    run = ["benchmark", file, "--random-weights", "--data", "datasets/Photos", "--runs", "0", "--devices", "cpu"]
    free(0)
    assert main(run) == 2
    assert f"24x32 {REFUSED}" in capsys.readouterr().err
    free(1)
    assert main(run) == 0


def test_only_inputs_that_are_larger_than_before_are_checked(monkeypatch):
    shapes = []
    monkeypatch.setattr(memory, "least_memory", lambda network, shape, gradients: shapes.append(tuple(shape)) or 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    run = memory.memory_checked(torch.neg, torch.nn.Identity())
    for side in (4, 3, 4, 5):
        run(torch.zeros(1, 3, side, side))
    assert shapes == [(1, 3, 4, 4), (1, 3, 5, 5)]


def test_test(place, free, option_file, capsys):
    free(0)
    assert main(["test", "-opt", str(option_file), "--random-weights"]) == 2
    assert REFUSED in capsys.readouterr().err
