"""Data workers: whatever happens to one, the run ends within seconds, with its exit code and one line."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml

from dlgsanet.cli import run
from dlgsanet.data.storage import write_lmdb
from dlgsanet.training.loader import LoadingError, endless_loader
from dlgsanet.training.samples import SampleStream, SeededSamples
from tests.training.conftest import COMMAND, ENVIRONMENT, FORKSERVER, identical, last_line, own_data_set

LOADING = {"pin_memory": False, "num_prefetch_queue": 1}


@pytest.fixture
def endless(workplace):
    """A workplace whose run has workers and does not end by itself; its images may be changed."""
    workplace.own_images()
    workplace.options["datasets"]["train"] |= {"num_worker_per_gpu": 2, "type": "PairedImageDataset"}
    workplace.options["train"]["total_iter"] = 100_000
    return workplace


def workers_of(process: int) -> list[int]:
    """Processes that have the given one's group and were started by its fork server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            group = int(path.read_text().rpartition(")")[2].split()[2])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if group == process != int(path.parent.name) and b"forkserver" in command:
            found.append(int(path.parent.name))
    return sorted(found)


def test_more_workers_than_cores(workplace):
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 2
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        ended = workplace.run_apart()
    finally:
        os.sched_setaffinity(0, cores)
    assert "Workers    2 processes load data on 1 core: fewer may be faster" in ended.stderr
    assert "UserWarning" not in ended.stderr


def test_image_that_is_removed_while_training_runs(endless):
    started = endless.start()
    started.wait_for(" 2/")
    (endless.folder / "train/HR/coffee.png").unlink()
    line = last_line(started.end(2))
    assert "coffee.png" in line
    assert not workers_of(started.process.pid)[1:]  # but the server, for a moment


def test_image_that_is_removed_from_ranks(endless):
    endless.options["datasets"]["train"] |= {"num_worker_per_gpu": 1, "batch_size_per_gpu": 2}
    runs = endless.start_ranks(2)
    runs[0].wait_for(" 2/")
    (endless.folder / "train/HR/coffee.png").unlink()
    said = "".join(run.end(2) for run in runs)
    assert "Traceback" not in said
    assert "coffee.png" in said


def test_worker_that_is_killed_and_workers_of_a_killed_run(endless):
    started = endless.start()
    started.wait_for(" 2/")
    _, *workers = workers_of(started.process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    line = last_line(started.end(2))
    assert "killed" in line
    started = endless.start("--auto_resume")
    started.wait_for("  l_pix ")  # it continues from an iteration that the machine's speed decides
    assert workers_of(started.process.pid)
    os.kill(started.process.pid, signal.SIGKILL)  # and nobody else
    started.end(-signal.SIGKILL)
    deadline = time.monotonic() + 600
    while workers_of(started.process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    endless.options["train"]["total_iter"] = 6
    endless.train("--auto_resume")  # nobody holds the folder


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signal_to_all_processes_lets_the_workers_go_on_until_the_run_has_saved(endless, number):
    started = endless.start()
    started.wait_for(" 3/")
    started.signal(number)
    said = started.end(130 if number == signal.SIGINT else 75)
    assert signal.Signals(number).name in said
    assert ".state" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_signal_to_all_processes_of_a_run_with_a_resource_tracker_of_its_own(endless, number):
    endless.options["datasets"]["train"]["num_worker_per_gpu"] = 1
    (endless.folder / "options.yml").write_text(yaml.safe_dump(endless.options))
    # Not a `Start`: those share the tracker of the tests, which is in another group.
    with (
        (endless.folder / "said.txt").open("w+") as said,
        subprocess.Popen(
            COMMAND, cwd=endless.folder, env=ENVIRONMENT, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        while " 3/" not in (endless.folder / "said.txt").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, number)
        assert process.wait() == 75
        said.seek(0)
        text = said.read()
    assert signal.Signals(number).name in text
    assert "Traceback" not in text
    assert "resource_tracker" not in text


def test_samples_that_do_not_fit_together():
    samples = SeededSamples([{"lq": torch.rand(3, 4, 4)}, {"lq": torch.rand(3, 5, 4)}], seed=0)
    batches = endless_loader(samples, LOADING, SampleStream(2, 2, seed=0), workers=0)
    with pytest.raises(LoadingError, match=r"datasets\.train"):
        next(batches)


def test_data_set_that_cannot_be_sent_to_workers():
    samples = SeededSamples([lambda: None], seed=0)
    with pytest.raises(LoadingError, match="num_worker_per_gpu"):
        next(endless_loader(samples, LOADING, SampleStream(1, 1, seed=0), workers=1))


def test_data_set_of_an_imported_file_reaches_the_workers(workplace):
    own_data_set(workplace)
    workplace.options["train"]["total_iter"] = 4
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 1
    workplace.train("--import", "own.py")
    workplace.options |= {"name": "alone", "import": ["own.py"]}
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 0
    workplace.train()
    assert identical(workplace.weights(4), workplace.weights(4, "alone"))


def _shared_memory_can_be_replaced() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not _shared_memory_can_be_replaced(), reason="needs the right to mount")
def test_shared_memory_that_is_too_small(endless):
    endless.options["datasets"]["train"] |= {"gt_size": 72, "batch_size_per_gpu": 16}
    mount = 'mount -t tmpfs -o size=200k tmpfs /dev/shm; exec "$@"'
    ended = endless.run_apart("unshare", "-m", "sh", "-c", mount, "sh", timeout=600)
    assert ended.returncode == 2
    assert "/dev/shm" in last_line(ended.stderr)
    assert "num_worker_per_gpu" in last_line(ended.stderr)


def _train_after_use(folder: Path) -> None:
    torch.set_num_threads(2)
    torch.nn.Conv2d(16, 16, 3)(torch.rand(4, 16, 64, 64))  # its threads are there, and would not be after a fork
    os.chdir(folder)
    raise SystemExit(run("dlgsanet.commands.train:main", ["-opt", "options.yml"]))


def test_training_in_a_process_that_has_computed_with_several_threads(endless):
    endless.options["train"]["total_iter"] = 2
    (endless.folder / "options.yml").write_text(yaml.safe_dump(endless.options))
    process = FORKSERVER.Process(target=_train_after_use, args=(endless.folder,))
    process.start()
    process.join(600)
    assert process.exitcode == 0


def test_workers_read_basicsrs_databases(workplace):
    """An open database cannot be sent to them."""
    for part in ("HR", "X2"):
        write_lmdb(workplace.folder / "train" / part, workplace.folder / f"{part}.lmdb", "x2" if part == "X2" else "")
    workplace.options["train"]["total_iter"] = 1
    data_set = workplace.options["datasets"]["train"]
    data_set |= {"type": "PairedImageDataset", "io_backend": {"type": "lmdb"}, "num_worker_per_gpu": 1}
    data_set |= {"dataroot_gt": "HR.lmdb", "dataroot_lq": "X2.lmdb"}
    assert "End of training" in workplace.train()


class CountedReads:
    """Samples that count how often they are read, in shared memory."""

    def __init__(self):
        self.reads = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self):
        return 100

    def sample(self, epoch, index):
        self.reads += 1
        return index


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_that_are_read_ahead(ahead):
    data = CountedReads()
    batches = endless_loader(
        SeededSamples(data, 0), LOADING | {"num_prefetch_queue": ahead}, SampleStream(100, 1, 0), workers=1
    )
    next(batches)
    deadline = time.monotonic() + 60
    while data.reads < 1 + ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert data.reads == 1 + ahead
    batches.close()
