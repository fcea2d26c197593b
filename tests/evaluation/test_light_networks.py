"""`scripts/light_networks.py`: the networks whose CPU time stands next to ours."""

import sys
from pathlib import Path

import pytest
import torch

from dlgsanet.errors import UserError
from dlgsanet.evaluation.complexity import multiply_accumulates
from tests.conftest import REPOSITORY, script


@pytest.fixture(scope="module")
def light_networks():
    return script("light_networks")


# Parameters [K] and multiply-adds [G] for a result of 1280x720, as published.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("RLFN", 543, None),
        ("RFDN, AIM 2020", 433, None),
        ("BSRN", 352, 19.4),
        ("IMDN", 715, 40.9),
        ("PAN", 272, 28.2),
        ("CARN-M", None, 32.5),  # its 412 K are of all scales together
        ("VapSR", 342, 19.5),
        ("SMFANet", 197, 11),
    ],
)
def test_has_the_published_size(light_networks, name, parameters, macs):
    network = light_networks.NETWORKS[name]().eval()
    if parameters:
        assert int(sum(p.numel() for p in network.parameters()) / 1e3) == parameters
    if macs:
        assert multiply_accumulates(network, 180, 320) / 1e9 == pytest.approx(macs, rel=0.06)


def test_prints_the_time_of_every_network(light_networks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("spandrel")
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "scripts"), *sys.path])
    out = tmp_path / "table.md"
    threads = torch.get_num_threads()
    try:
        light_networks.main(["--rounds", "1", "--image", "24x16", "--output", str(out)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert Path(out).read_text() == printed
    for name, make in light_networks.NETWORKS.items():
        row = next(line for line in printed.splitlines() if line.startswith(f"| {name} |"))
        assert float(row.split("|")[4]) >= 0
        image = torch.rand(2, 3, 16, 24)
        assert make().eval()(image).shape == (2, 3, 64, 96)
    assert "| DLGSANet Tiny | 581 |" in printed


def test_an_output_that_cannot_be_written_is_found_before_it_measures(light_networks, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(light_networks, "table", lambda *arguments: pytest.fail("it measures"))
    with pytest.raises(UserError, match=r"file/table\.md"):
        light_networks.main(["--output", str(tmp_path / "file/table.md")])
