"""Files are there in full or not at all, however many writers there are and however they end."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlgsanet import files
from dlgsanet.errors import UserError
from dlgsanet.files import check_can_write, expanded, folder_written_aside, write_whole, written_aside
from tests.conftest import REPOSITORY

# Writes a file again and again: the writer's letter, a million times.
WRITER = """
import sys
from pathlib import Path
from dlgsanet.files import write_whole
while True:
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 1_000_000)
    print(end=".", flush=True)
"""
# Begins to write a file and waits.
UNFINISHED = """
import sys
from pathlib import Path
from dlgsanet.files import folder_written_aside, written_aside
with written_aside(Path(sys.argv[1])) as file, folder_written_aside(Path(sys.argv[1] + ".folder")) as folder:
    file.write(b"x" * 100_000)
    (folder / "part of it").write_text("x")
    print(flush=True)
    sys.stdin.read()
"""


def start(program: str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read(1)
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def temporary(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def kill_two_writers(target: Path, times: int) -> None:
    """Kill both writers of a file at random moments; at each the file must be one writer's, in full."""
    moments = random.Random(0)
    for _ in range(times):
        writers = [start(WRITER, str(target), letter) for letter in "ab"]
        time.sleep(moments.uniform(0, 0.1))
        for writer in writers:
            kill(writer)
            content = target.read_bytes()
            assert content in (b"a" * 1_000_000, b"b" * 1_000_000)


def test_two_writers_killed_tear_nothing_and_the_next_writer_cleans_up(tmp_path):
    kill_two_writers(tmp_path / "file", times=4)
    unfinished = start(UNFINISHED, str(tmp_path / "another"))
    kill(unfinished)
    assert len(temporary(tmp_path)) >= 2
    subprocess.run(
        [sys.executable, "-c", WRITER.replace("while", "if"), str(tmp_path / "file"), "c"], cwd=REPOSITORY, check=True
    )
    assert not temporary(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"c" * 1_000_000


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_writers_killed_a_hundred_times(tmp_path):
    kill_two_writers(tmp_path / "file", times=100)


def test_what_a_live_writer_has_so_far_is_left_alone(tmp_path):
    writer = start(UNFINISHED, str(tmp_path / "slow"))
    before = temporary(tmp_path)
    assert len(before) == 2
    write_whole(tmp_path / "quick", b"x")
    assert temporary(tmp_path) == before
    writer.communicate()
    assert writer.returncode == 0
    assert (tmp_path / "slow").read_bytes() == b"x" * 100_000
    assert [path.name for path in (tmp_path / "slow.folder").iterdir()] == ["part of it"]
    assert not temporary(tmp_path)


def test_leftover_of_another_host_stays_until_it_is_old(tmp_path):
    for folder, age in (("new", 0), ("old", 7200)):
        (tmp_path / folder).mkdir()
        left = tmp_path / folder / ".dlgsanet-elsewhere-0123-4567.part"
        left.write_bytes(b"x")
        os.utime(left, (time.time() - age,) * 2)
        write_whole(tmp_path / folder / "file", b"x")
        assert left.exists() == (age == 0)


def test_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    left = tmp_path / f".dlgsanet-{files.HOST}-0123-4567.part"
    left.write_bytes(b"x")
    write_whole(tmp_path / "file", b"x")
    assert left.exists()
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("ends", [ValueError, KeyboardInterrupt, OSError(28, "full")])
def test_failure_leaves_the_former_file_and_nothing_else(tmp_path, ends):
    write_whole(tmp_path / "file", b"former")

    def fail():
        with written_aside(tmp_path / "file") as file, folder_written_aside(tmp_path / "folder"):
            file.write(b"new")
            raise ends

    with pytest.raises(UserError if isinstance(ends, OSError) else ends):
        fail()
    assert (tmp_path / "file").read_bytes() == b"former"
    assert len(list(tmp_path.iterdir())) == 1


def test_longest_name_and_usual_permissions(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, b"x")
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_permissions_and_owner_of_a_file_that_is_replaced(tmp_path, monkeypatch):
    owners = []
    monkeypatch.setattr(files.os, "fchown", lambda file, *owner: owners.append(owner))
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o640)
    before = path.stat()
    (tmp_path / "link").symlink_to(path)
    write_whole(tmp_path / "link", b"x")
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode == before.st_mode
    assert owners == [(before.st_uid, before.st_gid)]


@pytest.mark.parametrize("make", [files.written_aside, files.folder_written_aside])
def test_failure_leaves_no_new_folder(tmp_path, make):
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "new" / "folder" / ("x" * 300), tmp_path / "mine" / "new" / ("x" * 300)):
        with pytest.raises(UserError), make(path):
            pass
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_missing_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/inside"):
        write_whole(tmp_path / "file/inside", b"x")


LONG = "n" * 256


@pytest.mark.parametrize(
    "name", ["file/inside", "folder", "pipe", "pipe_link", "loop", LONG, f"new/{LONG}", "a/" * 3000 + "x", "/dev/null"]
)
def test_name_that_cannot_be_written_is_found_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe_link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for call in (check_can_write, lambda path: write_whole(path, b"x")):
        with pytest.raises(UserError, match=name[:40]):
            call(tmp_path / name)
        assert sorted(tmp_path.rglob("*")) == before


def test_check_of_a_name_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"former")
    before = sorted(tmp_path.rglob("*"))
    check_can_write(tmp_path / "file")
    check_can_write(tmp_path / "new" / "folder" / "file")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_bytes() == b"former"


def test_symbolic_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "file").write_bytes(b"former")
    for name, target in (("link", "file"), ("dangling", "new/file")):
        (tmp_path / name).symlink_to(target)
        write_whole(tmp_path / name, b"x")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_bytes() == b"x"


def test_home_of_a_user_who_does_not_exist(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expanded("~/a"), expanded("~nobody-here/a")] == [Path("/home/me/a"), Path("~nobody-here/a")]


def test_whether_a_disk_ignores_case(tmp_path, monkeypatch):
    def exists_in_any_case(path):
        return Path(path).name.lower() in [name.lower() for name in os.listdir(Path(path).parent)]

    assert not files.ignores_case(tmp_path / "not/there")
    monkeypatch.setattr("os.path.exists", exists_in_any_case)
    assert files.ignores_case(tmp_path / "not/there")
    assert not [*tmp_path.iterdir()]
