"""`scripts/light_networks.py`: the networks whose CPU time stands next to ours."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from dlgsanet.evaluation.complexity import multiply_accumulates
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("light_networks", REPOSITORY / "scripts/light_networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
def test_has_the_published_size(script, name, parameters, macs):
    network = script.NETWORKS[name]().eval()
    if parameters:
        assert int(sum(p.numel() for p in network.parameters()) / 1e3) == parameters
    if macs:
        assert multiply_accumulates(network, 180, 320) / 1e9 == pytest.approx(macs, rel=0.06)


def test_prints_the_time_of_every_network(script, tmp_path, monkeypatch, capsys):
    pytest.importorskip("spandrel")
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "scripts"), *sys.path])
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["light_networks.py", "--rounds", "1", "--image", "24x16", "--output", str(out)])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert Path(out).read_text() == printed
    for name, make in script.NETWORKS.items():
        row = next(line for line in printed.splitlines() if line.startswith(f"| {name} |"))
        assert float(row.split("|")[4]) >= 0
        image = torch.rand(2, 3, 16, 24)
        assert make().eval()(image).shape == (2, 3, 64, 96)
    assert "| DLGSANet Tiny | 581 |" in printed


@pytest.mark.parametrize(("option", "value"), [("--output", "file/table.md"), ("--rounds", "0")])
def test_refuses_what_cannot_end_well_before_it_measures(script, tmp_path, monkeypatch, capsys, option, value):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(sys, "argv", ["light_networks.py", option, value])
    monkeypatch.setattr(script, "table", lambda *arguments: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert f"{option}: " in capsys.readouterr().err.splitlines()[-1]
