"""`dlgsanet benchmark --shard`: the tables of several jobs are those of one process, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from skimage import data

from dlgsanet.cli import main
from dlgsanet.data.resize import downscale
from dlgsanet.folder_lock import owned
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import save

# The output depends on all pictures of a batch, so that scores show which pictures went through it together.
NETWORK = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class BatchMean(torch.nn.Module):
    def __init__(self, refused=0):
        super().__init__()
        self.refused = refused

    def forward(self, x):
        if x.shape[-1] == self.refused:
            raise RuntimeError("this width is not supported")
        return torch.nn.functional.interpolate(0.9 * x + 0.1 * x.mean(0), scale_factor=2)
"""
TABLES = ("x2.csv", "x2.json", "x2.md", "x2.tex", "x2.html")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a test set of 9 pictures, 7 of them of one size, and the option files of two networks."""
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        image = data.astronaut()[30 * number : 30 * number + 40, 100 : 132 + 16 * (number // 7)]
        save(tmp_path / f"datasets/Set/HR/{number}.png", image)
        save(tmp_path / f"datasets/Set/LR_bicubic/X2/{number}x2.png", downscale(image, 2))
    (tmp_path / "network.py").write_text(NETWORK)
    for name, network in {"A": {}, "Narrow": {"refused": 24}}.items():
        options = {"scale": 2, "import": ["network.py"], "network_g": {"type": "BatchMean", **network}}
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(options))
    return tmp_path


def arguments(output: str, *more: str, network: str = "A.yml") -> list[str]:
    fixed = ["--data", "datasets/Set", "--runs", "0", "--batch", "3", "--random-weights"]
    return ["benchmark", network, *fixed, "-o", output, *more]


def start(*more: str, **environment: str) -> subprocess.Popen:
    """The command in a process group of its own."""
    command = [sys.executable, "-m", "dlgsanet", *arguments("out", *more)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def tables(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in TABLES if Path(folder, name).exists()}


def pictures(folder: str) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.png") if path.name[0] != "."}


def written(folder: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.png") if path.name[0] != "."}


def scored(folder: str) -> list[str]:
    """The pictures whose scores were written, by all jobs."""
    lines = [line for path in Path(folder).glob("journal*.jsonl") for line in path.read_text().splitlines()]
    return [key.split()[0] for key in (json.loads(line)["key"] for line in lines) if ".png " in key]


def assert_as_one_process(capsys) -> None:
    assert main(arguments("one")) == 0
    assert len(tables("one")) == len(TABLES)
    assert tables("out") == tables("one")
    assert pictures("out") == pictures("one")


def test_jobs_at_the_same_time(place, capsys):
    """A task of an array, and another by number: every picture once, and the one that ends last makes the tables."""
    task = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    for process in [start("--shard", "slurm", **task), start("--shard", "2/2")]:
        ended(process)
    assert min(path.stat().st_size for path in Path("out").glob("journal_*_of_2.jsonl")) > 0
    assert len(scored("out")) == len(set(scored("out"))) == 18
    assert_as_one_process(capsys)


def test_killed_and_run_again(place, capsys):
    killed = start("--shard", "1/2", "--devices", "cpu", "cpu")
    while not scored("out") and killed.poll() is None:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = {Path("out", picture) for picture in scored("out")}
    before = written("out")
    assert done
    assert main(arguments("out", "--shard", "1/2")) == 0
    again = {path for path in done if written("out")[path] != before[path]}
    assert len(again) < 3  # the batch that was killed between its pictures is done again
    assert not tables("out")
    assert main(arguments("out", "--shard", "2/2")) == 0
    assert_as_one_process(capsys)


def test_a_run_without_parts_does_what_is_missing(place, capsys):
    assert main(arguments("out", "--shard", "2/2")) == 0
    before = written("out")
    assert 0 < len(before) < 18
    assert not tables("out")
    assert main(arguments("out")) == 0
    assert {path: when for path, when in written("out").items() if path in before} == before
    assert_as_one_process(capsys)


def test_a_part_that_fails(place, capsys):
    """Its job ends with an error, and there are no tables with less than the others have made."""
    codes = [main(arguments("out", "--shard", f"{part}/3", network="Narrow.yml")) for part in (1, 2, 3)]
    assert sorted(codes) == [0, 0, 2]
    assert not tables("out")
    assert main(arguments("out", network="Narrow.yml")) == 2
    assert main(arguments("one", network="Narrow.yml")) == 2
    assert tables("out") == tables("one")
    assert "Narrow" in capsys.readouterr().err


def test_two_parts_that_end_together(place, capsys):
    """One of them makes the tables; the other one leaves that to it."""
    assert main(arguments("out", "--shard", "1/2")) == 0
    with owned(Path("out/x2")):
        assert main(arguments("out", "--shard", "2/2")) == 0
        assert main(arguments("out")) == 2
        assert "out/x2" in capsys.readouterr().err
    assert not tables("out")
    assert main(arguments("out", "--shard", "2/2")) == 0
    assert_as_one_process(capsys)


def test_other_weights_meanwhile(place, capsys):
    """Pictures of a network that has changed are not those of the tables, whichever job wrote them."""
    assert main(arguments("out", "--shard", "1/2")) == 0
    options = yaml.safe_load(Path("A.yml").read_text())
    Path("A.yml").write_text(yaml.safe_dump(options | {"network_g": {"type": "BatchMean", "refused": 1}}))
    assert main(arguments("out", "--shard", "2/2")) == 0
    assert not tables("out")
    assert main(arguments("out", "--shard", "1/2")) == 0
    assert_as_one_process(capsys)


def test_a_wrong_part_is_one_line(place, capsys):
    with pytest.raises(SystemExit):
        main(arguments("out", "--shard", "3/2"))
    assert "--shard" in capsys.readouterr().err.splitlines()[-1]
