"""One process at a time owns a folder, and a dead one owns nothing."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dlgsanet import folder_lock
from dlgsanet.errors import UserError
from dlgsanet.folder_lock import owned
from tests.conftest import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from dlgsanet.folder_lock import owned
with owned(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "experiments/run"


def may_have_another_hostname() -> bool:
    return (
        subprocess.run(["unshare", "--uts", "hostname", "elsewhere"], check=False, capture_output=True).returncode == 0
    )


@pytest.fixture
def holder(folder, request):
    """Another process that owns the folder until it is ended; with a parameter, on a host of that name."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-c", HOLD, str(folder)]
    if host := getattr(request, "param", None):
        command = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *command]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        yield process
        process.kill()


def without_locks(*_):
    raise OSError(38, os.strerror(38))


def refused(folder) -> str:
    with pytest.raises(UserError) as error, owned(folder):
        pass
    return str(error.value)


def test_owner_is_named_and_a_killed_one_owns_nothing(folder, holder):
    message = refused(folder)
    for text in (str(folder), socket.gethostname(), str(holder.pid), time.strftime("%Y-%m-%d")):
        assert text in message
    assert not folder.exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(folder):
        pass


@pytest.mark.skipif(not may_have_another_hostname(), reason="gives a process another host name")
@pytest.mark.parametrize("holder", ["elsewhere"], indirect=True)
def test_owner_on_another_host_is_named_and_when_it_is_dead_the_folder_is_free(folder, holder, caplog):
    lock = folder.parent / ".run.lock"
    started = json.loads(lock.read_text())["started"]
    for text in (str(folder), "elsewhere", str(holder.pid), started, str(lock)):
        assert text in refused(folder)
    assert not caplog.records
    holder.kill()
    holder.wait()
    with owned(folder):  # the file server gives up the lock
        assert json.loads(lock.read_text())["host"] == socket.gethostname()
    (record,) = caplog.records  # if the file server does not share locks, both hosts may hold one
    assert "elsewhere" in record.getMessage()


def test_dead_owner_on_another_host_without_locks_is_removed_by_hand(folder, monkeypatch):
    """What the message says to do."""
    monkeypatch.setattr(folder_lock.fcntl, "lockf", without_locks)
    folder.parent.mkdir()
    lock = folder.parent / ".run.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "2026-11-25 10:00:00"}))
    for text in ("elsewhere", "7", "2026-11-25 10:00:00", f"delete {lock}"):
        assert text in refused(folder)
    lock.unlink()
    with owned(folder):
        assert "elsewhere" not in lock.read_text()


def test_second_owner_within_a_process(folder):
    with owned(folder):
        assert str(os.getpid()) in refused(folder)
        assert str(os.getpid()) in refused(folder)  # the first refusal has not released the lock
        with owned(folder.with_name("other")):
            pass
    with owned(folder):
        pass


def test_forked_process_does_not_keep_the_folder(folder):
    context = multiprocessing.get_context("fork")
    with owned(folder):
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
    command = [sys.executable, "-c", HOLD, str(folder)]
    subprocess.run(command, stdin=subprocess.DEVNULL, cwd=REPOSITORY, check=True)
    child.kill()


def test_queued_again_job_waits_for_its_former_start(folder, holder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    threading.Timer(2, holder.kill).start()
    with owned(folder):
        pass


@pytest.mark.parametrize(
    ("owner", "is_refused"),
    [
        (None, False),
        ({"host": "elsewhere", "pid": 1}, True),
        ({"host": socket.gethostname(), "pid": os.getpid(), "ticks": folder_lock._started(os.getpid())}, True),
        ({"host": socket.gethostname(), "pid": os.getpid(), "ticks": 1}, False),
    ],
    ids=["nobody", "another host", "a process", "its id used again"],
)
def test_file_system_without_locks(folder, monkeypatch, owner, is_refused):
    monkeypatch.setattr(folder_lock.fcntl, "lockf", without_locks)
    folder.parent.mkdir()
    lock = folder.parent / ".run.lock"
    lock.write_text(json.dumps(owner) if owner else "")
    if is_refused:
        assert f"delete {lock}" in refused(folder)
        assert json.loads(lock.read_text()) == owner
    else:
        with owned(folder):
            pass
        assert not folder.parent.exists()  # nothing is left, the lock file neither


def test_an_error_within_the_block_is_reported_on_a_full_disk_too(folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # nothing can be written
    try:
        with pytest.raises(UserError, match="the reason"), owned(folder):
            raise UserError("the reason")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(tmp_path / "file/run")
