"""The `dlgsanet` command and the two entry points."""

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlgsanet.cli import SUBCOMMANDS, main
from tests.conftest import REPOSITORY, python


def command(*arguments: str, cwd=REPOSITORY) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    call = [sys.executable, "-m", "dlgsanet", *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, env=environment)


def test_help_answers_at_once_and_names_every_command():
    before = os.times()
    done = command("--help")
    after = os.times()
    # CPU time: other programs may use the cores.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in SUBCOMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_command_does_not_load_torch():
    code = "import sys, dlgsanet.cli; sys.exit('torch' in sys.modules or 'basicsr' in sys.modules)"
    assert python(code).returncode == 0


@pytest.mark.parametrize("name", [*SUBCOMMANDS, "data folder", "data sheet", "explain lam"])
def test_every_command_has_help_of_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dlgsanet {name}")
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_usage_has_what_must_be_given_in_an_order_that_works(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
    assert usage == "usage: dlgsanet benchmark [NAME=]FILE [[NAME=]FILE ...] --data DIR [DIR ...] [option ...]"


def test_a_name_leads_to_no_other_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.new("RGB", (16, 16)).save("in/a.png")
    for name in ("..", "a/b", str(tmp_path / "elsewhere")):
        with pytest.raises(SystemExit) as caught:
            main(["data", "folder", "in", "--name", name])
        assert caught.value.code == 2
        assert "--name" in capsys.readouterr().err
    assert main(["data", "folder", "in", "--name", "a" * 300]) == 2  # no file system allows it
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_unknown_command_is_one_line():
    done = command("trian")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train" in done.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["benchmrk"], "benchmark"),
        (["data", "chekc"], "check"),
        (["explain", "lamm"], "lam"),
        (["upscale", "photo.png", "--weigths", "Tiny"], "--weights"),
        (["benchmark", "a.pth", "--datta", "datasets/Set5"], "--data"),  # although --data is required
        (["data", "div2k", "--rot", "folder"], "--root"),
        (["train", "-opt", "a.yml", "--force_yaml", "scale=2"], "--force-yml"),
        (["train", "-opt", "a.yml", "--launcher", "pytroch"], "pytorch"),
    ],
)
def test_a_misspelt_word_gets_the_one_that_was_meant(words, meant, capsys):
    assert code_of(words) == 2
    message = capsys.readouterr().err
    assert f"did you mean {meant}?" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["upscale", "photo.png", "--scale", "7"], "--scale"),
        (["upscale", "photo.png", "--xyzzy"], "--xyzzy"),
        (["complexity", "Tiny", "--runs", "-1"], "--runs"),
        (["test", "-opt", "a.yml", "b.yml"], "b.yml"),
        (["train"], "-opt"),
        (["train", "-opt", "a.yml", "--same-options"], "--auto-resume"),
        (["explain"], "COMMAND"),
    ],
)
def test_wrong_arguments_are_one_line(words, named, capsys):
    assert code_of(words) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1


def code_of(words):
    try:
        return main(words)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("script", ["train", "test"])
def test_the_entry_points_run_as_files(script, tmp_path):
    call = [sys.executable, str(REPOSITORY / "dlgsanet" / f"{script}.py"), "-opt", "none.yml"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "none.yml: cannot be read" in done.stderr.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["doctor"],
        ["data", "check", "."],
        pytest.param(["complexity", "Tiny", "--runs=0"], marks=pytest.mark.long),
    ],
)
def test_output_that_cannot_be_written(arguments, tmp_path):
    """On a full disk, or to a program that has ended."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    command = " ".join([sys.executable, "-m", "dlgsanet", *arguments])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for line, code in ((f"{command} > /dev/full", 2), (f"set -o pipefail; {command} | true", None)):
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        if code:
            assert done.returncode == code
            assert "standard output" in done.stderr.splitlines()[-1]


def test_a_process_that_crashes_says_where():
    code = "import os, signal; from dlgsanet.cli import main; main(['--version']); os.kill(os.getpid(), signal.SIGSEGV)"
    crashed = python(code)
    assert "Segmentation fault" in crashed.stderr
    assert 'File "<string>", line 1' in crashed.stderr


def test_every_error_begins_alike(capsys):
    for arguments in (["nothing"], ["upscale"], ["upscale", "--nothing"], ["data", "lmdb", "--workers", "0"]):
        with suppress(SystemExit):
            main(arguments)
        assert capsys.readouterr().err.splitlines()[-1].startswith("dlgsanet: error: "), arguments


def test_no_folder_for_temporary_files(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    assert main(["web"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/nonexistent" in line
    assert line.endswith("set TMPDIR to a folder that can be written")


def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    assert main(["upscale", "a.png"]) == 2
    assert "working folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EACCES])
def test_a_file_that_vanishes_or_does_not_fit_is_named(monkeypatch, capsys, number):
    def fail(argv):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("dlgsanet.commands.convert.main", fail)
    assert main(["convert"]) == 2
    assert capsys.readouterr().err == f"dlgsanet: error: some/file: {os.strerror(number)}\n"
