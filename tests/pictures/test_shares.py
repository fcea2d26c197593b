"""`dlgsanet upscale` by several jobs and on several devices: every picture once, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.pictures.find_files import Job
from dlgsanet.pictures.shares import Shard, done_on_devices, read_shard
from tests.conftest import REPOSITORY

PICTURES = 9


@pytest.fixture
def folder(tmp_path, photo):
    for number in range(PICTURES):
        (tmp_path / "in" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(tmp_path / "in" / str(number % 2) / f"{number}.png")
    return tmp_path


def arguments(folder: Path, weights: Path, *more: str) -> list[str]:
    out = folder / "out"
    return ["upscale", str(folder / "in"), "-o", str(out), "--weights", str(weights), "--device", "cpu", *more]


def start(folder: Path, weights: Path, *more: str, interrupts=signal.SIG_DFL, **environment: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "dlgsanet", *arguments(folder, weights, *more)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )  # fmt: skip


def results(folder: Path) -> list[Path]:
    # Not by rglob, which fails where a folder goes meanwhile.
    return sorted(Path(root, n) for root, _, names in os.walk(folder / "out") for n in names if n.endswith(".png"))


def made(process: subprocess.Popen) -> list[str]:
    """The pictures that a command reports as done."""
    _, errors = process.communicate()
    print(errors)  # pytest shows it when a test fails
    assert process.returncode == 0, errors
    return [line.split(" -> ")[0].split()[-1] for line in errors.splitlines() if " -> " in line]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_picture_is_in_one_shard(count):
    jobs = [Job(Path(f"in/{n}.png"), Path(f"out/{n}.png")) for n in range(500)]
    shares = [[job for job in jobs if Shard(index, count).has(job.target)] for index in range(1, count + 1)]
    assert sorted(job.name for share in shares for job in share) == sorted(job.name for job in jobs)
    assert min(map(len, shares)) > 0.7 * 500 / count


def test_shards_of_a_job_array():
    task = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "4"}
    task |= {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}
    assert read_shard("slurm", task) == (3, 4)
    assert read_shard("2/3", task) == (2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3", "slurm"):
        with pytest.raises(ValueError, match=r"slurm|/"):
            read_shard(text, {})


def test_a_wrong_shard_is_one_line(folder, weights, capsys):
    with pytest.raises(SystemExit):
        main(arguments(folder, weights, "--shard", "3/2"))
    assert "--shard" in capsys.readouterr().err.splitlines()[-1]


def test_a_shard_does_not_depend_on_how_the_output_is_spelled(folder, weights, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "out").mkdir()
    (folder / "link").symlink_to("out")
    shares = []
    for out in ("out", str(folder / "out"), "../" * len(folder.parts) + str(folder / "out"), "link"):
        assert main([*arguments(folder, weights, "--shard", "1/2", "--dry-run"), "-o", out]) == 0
        shares.append([line.split(" -> ")[0] for line in capsys.readouterr().err.splitlines() if " -> " in line])
    assert 0 < len(shares[0]) < PICTURES
    assert shares == [shares[0]] * 4


def test_jobs_share_a_folder(folder, weights):
    """Two tasks of an array and a third by number, at the same time."""
    tasks = [{"SLURM_ARRAY_TASK_ID": str(n), "SLURM_ARRAY_TASK_COUNT": "3"} for n in range(2)]
    running = [start(folder, weights, "--shard", "slurm", **task) for task in tasks]
    running.append(start(folder, weights, "--shard", "3/3"))
    done = [name for process in running for name in made(process)]
    assert len(done) == len(set(done)) == PICTURES == len(results(folder))


def test_devices_share_a_folder_killed_and_run_again(folder, weights):
    killed = start(folder, weights, "--device", "cpu,cpu")
    while not [path for path in results(folder) if path.name[0] != "."] and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()  # until the processes of the devices have ended too
    before = {path: path.stat().st_mtime_ns for path in results(folder)}
    assert before
    done = made(start(folder, weights, "--device", "cpu,cpu"))
    assert len(done) == len(set(done)) == PICTURES - len(before)
    assert len(results(folder)) == PICTURES
    for path in results(folder):
        assert Image.open(path).convert("RGB").getpixel((0, 0))  # whole
        assert before.get(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns


def test_processes_of_devices_share_the_memory():
    found = list(done_on_devices(["cpu", "cpu"], str, os.getenv, ["LOCAL_WORLD_SIZE"] * 2))
    assert found == [("LOCAL_WORLD_SIZE", "2")] * 2


def test_an_interrupt_ends_the_work_of_all_devices(folder, weights):
    """Ctrl-C reaches every process."""
    interrupted = start(folder, weights, "--device", "cpu,cpu")
    while not results(folder) and interrupted.poll() is None:
        time.sleep(0.02)
    os.killpg(interrupted.pid, signal.SIGINT)
    before = len(results(folder))
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 130, errors
    assert len(results(folder)) <= before + 1  # what was being written
    assert errors.splitlines()[-1] == "dlgsanet: interrupted; results written so far are whole"


def test_work_in_the_background_of_a_script_ignores_interrupts(folder, weights):
    running = start(folder, weights, "--device", "cpu,cpu", interrupts=signal.SIG_IGN)
    while not results(folder) and running.poll() is None:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 0, errors


def test_shared_results_and_faults_are_those_of_one_device(folder, weights, capsys):
    (folder / "in/broken.png").write_bytes(b"not a picture")
    assert main(arguments(folder, weights, "--device", "cpu,cpu")) == 2
    assert "broken.png" in capsys.readouterr().err.splitlines()[-1]
    shared = {path.name: path.read_bytes() for path in results(folder)}
    assert main(arguments(folder, weights, "--overwrite")) == 2
    assert {path.name: path.read_bytes() for path in results(folder)} == shared
