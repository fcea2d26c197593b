"""`dlgsanet data` is never silent for more than 10 seconds: whatever may take long runs while progress is shown."""

import fcntl
import io
import multiprocessing
import os
import pty
import shutil
import struct
import sys
import tarfile
import termios
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from dlgsanet import progress
from dlgsanet.commands.data import main
from dlgsanet.data.download import download
from dlgsanet.errors import UserError


@pytest.fixture
def slow_calls(monkeypatch):
    """Names of calls that read or write files; each must be made while a thread shows progress."""
    made = []

    def watch(owner, name):
        call = getattr(owner, name)

        def watched(*arguments, **options):
            made.append(name)
            assert any(thread.name == progress.THREAD for thread in threading.enumerate()), name
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(Image, "open")
    watch(Image.Image, "save")
    watch(os, "walk")
    watch(zipfile.ZipFile, "read")
    watch(tarfile.TarFile, "next")
    return made, watch


def archived(originals: Path, file: Path) -> Path:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in originals.iterdir():
                archive.write(path, path.name)
    else:
        with tarfile.open(file, "w") as archive:
            archive.add(originals, "photos")
    return file


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_preparing(originals, tmp_path, slow_calls, kind):
    source = originals if kind == "folder" else archived(originals, tmp_path / f"photos.{kind}")
    made, _ = slow_calls
    made.clear()
    assert main(["folder", str(source), "--name", "P", "--root", str(tmp_path)]) == 0
    assert {"open", "save"} <= set(made)
    assert {"folder": "walk", "zip": "read", "tar": "next"}[kind] in made


@pytest.mark.parametrize("command", ["check", "subimages", "lmdb", "meta-info"])
def test_checking_and_storing(photo_root, tmp_path, slow_calls, command):
    made, _ = slow_calls
    root = tmp_path / "Photos"
    shutil.copytree(photo_root, root)
    arguments = {
        "check": [str(root), "--against", str(photo_root)],
        "subimages": [str(root), "--size", "48", "--step", "48", "--scales", "2"],
        "lmdb": [str(root), "--scales", "2"],
        "meta-info": [str(root / "HR"), str(tmp_path / "meta.txt")],
    }
    if command == "check":
        with pytest.raises(UserError, match="faults: "):  # the roots have the same pictures
            main([command, *arguments[command]])
    else:
        assert main([command, *arguments[command]]) == 0
    assert "open" in made


def test_downloading(tmp_path, slow_calls, monkeypatch):
    """A server that answers at the fourth request; what is between the requests may take long too."""
    made, watch = slow_calls
    answers = iter([OSError("no route"), OSError("no route"), OSError("no route"), None])

    def answer(request, timeout):
        if error := next(answers):
            raise urllib.error.URLError(error)
        response = urllib.response.addinfourl(
            io.BytesIO(b"x"), {"ETag": "1", "Content-Length": "1"}, request.full_url, 200
        )
        response.headers = {"ETag": "1", "Last-Modified": None, "Content-Length": "1"}
        return response

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    watch(urllib.request, "urlopen")
    watch(time, "sleep")
    download("http://example.org/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == b"x"
    assert made.count("urlopen") == 4
    assert made.count("sleep") == 3


@pytest.mark.parametrize("kind", ["counter", "stage", "silent stage"])
def test_lines_while_one_piece_takes_long(kind, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST", 0.02)
    monkeypatch.setattr(progress, "EVERY", 0.02)
    shown = progress.Counter("work", 2) if kind == "counter" else progress.stage("work", at_once=kind == "stage")
    with shown:
        while capsys.readouterr().err.count("work") < 1:
            time.sleep(0.01)
        while capsys.readouterr().err.count("work") < 1:  # and again
            time.sleep(0.01)
    assert progress.EVERY < 10


@pytest.mark.parametrize("columns", [40, 80])
def test_the_bar_has_room_beside_long_names(columns, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress.progress_of("IMG_" + "2026" * 20 + ".png"):
        pass
    bar = terminal.getvalue().split("\r")[1]
    assert bar.startswith("IMG_")
    assert bar.rstrip().endswith("left")


def test_a_terminal_has_its_own_width():
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 43, 0, 0))  # Python 3.10 has no tcsetwinsize
    with open(theirs, "w") as terminal, open(mine):
        assert progress.width_of(terminal) == 43


def test_processes_that_share_a_terminal_write_lines(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(progress, "FIRST", 0)
    with progress.progress_of("a.png") as show:
        show(0.5)
    assert terminal.getvalue().startswith("a.png: 50%, about ")


def test_lines_come_at_least_every_10_seconds():
    assert max(progress.FIRST, progress.EVERY) < 10
