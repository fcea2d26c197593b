"""The job scripts under sh, bash and a stand-in for slurm that runs a copy of them, as slurm does."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "demo_sbatch_file").glob("*/*.sh"))
OPTIONS = sorted(REPOSITORY.glob("options/*/*.yml"))
TRAIN = next(path for path in SCRIPTS if path.stem.startswith("train_SISR_ClassicDIV2K_Large"))
TEST = next(path for path in SCRIPTS if path.stem.startswith("test_SISR_ClassicDIV2K_Large"))

# Stands for dlgsanet/train.py and dlgsanet/test.py: writes down how it was called, ends with the code it is told.
COMMAND = """
import json, os, sys
json.dump({"argv": sys.argv, "cwd": os.getcwd()}, open("called.json", "w"))
sys.exit(int(os.environ.get("STAND_IN_CODE", "0")))
"""
SBATCH = """#!/bin/sh
# A stand-in for sbatch: copies the script to a spool folder and runs the copy, from the folder of submission.
cp "$1" spool/slurm_script
export SLURM_JOB_ID=17 SLURM_JOB_NAME=job SLURM_NTASKS=${STAND_IN_TASKS:-1} SUBMITTED="$(realpath "$1")"
shift
exec sh spool/slurm_script "$@"
"""
SCONTROL = """#!/bin/sh
echo "$@" >>scontrol.log
echo "JobId=17 JobName=job"
echo "   Command=$SUBMITTED"
"""
SRUN = '#!/bin/sh\nexec "$@"\n'


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository whose commands only write down how they were called."""
    root = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "demo_sbatch_file", root / "demo_sbatch_file")
    (root / "dlgsanet").mkdir()
    for command in ("train", "test"):
        (root / "dlgsanet" / f"{command}.py").write_text(COMMAND)
    return root


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Another folder to submit from, with slurm's commands and `python` on the path."""
    folder, programs = tmp_path / "elsewhere", tmp_path / "bin"
    (folder / "spool").mkdir(parents=True)
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "srun": SRUN}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


def run(*command, cwd, **environment) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def called(repository: Path) -> dict:
    return json.loads((repository / "called.json").read_text())


def test_every_option_file_has_its_script():
    assert {path.stem for path in SCRIPTS} == {path.stem for path in OPTIONS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_have_real_sbatch_lines_and_name_their_option_file(script):
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n#SBATCH ")
    directives = re.findall(r"^#SBATCH (--[\w-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(directives) == text.count("#SBATCH")
    assert ("--job-name", script.stem) in directives
    options = re.search(r"^options=(\S+)$", text, re.MULTILINE)[1]
    assert (REPOSITORY / options).stem == script.stem
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("script", [TEST, TRAIN], ids=lambda path: path.stem[:5])
def test_under_a_shell_from_any_folder(repository, elsewhere, shell, script):
    path = repository / script.relative_to(REPOSITORY)
    done = run(shell, os.path.relpath(path, elsewhere), "--debug", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    command = script.stem[:5].rstrip("_")
    call = called(repository)
    assert call["cwd"] == str(repository)
    assert call["argv"][:4] == [f"dlgsanet/{command}.py", "-opt", f"options/{command}/{script.stem}.yml", "--debug"]
    assert ("--auto_resume" in call["argv"]) == (command == "train")


@pytest.mark.parametrize("tasks", ["1", "8"])
def test_under_slurm_which_runs_a_copy(repository, elsewhere, tasks):
    script = repository / TRAIN.relative_to(REPOSITORY)
    done = run("sbatch", str(script), cwd=elsewhere, STAND_IN_TASKS=tasks)
    assert done.returncode == 0, done.stderr
    assert called(repository)["cwd"] == str(repository)
    assert ("slurm" in called(repository)["argv"]) == (tasks == "8")
    assert f"log: {repository}/slurm_logs/job-17.log" in done.stdout
    assert (repository / "slurm_logs/job-17.log").is_file()


def test_a_clone_elsewhere_can_be_named(repository, elsewhere):
    (elsewhere / "alone.sh").write_bytes(TRAIN.read_bytes())
    done = run("sh", "alone.sh", cwd=elsewhere, DLGSANET_HOME=str(repository))
    assert done.returncode == 0, done.stderr
    assert called(repository)["cwd"] == str(repository)


@pytest.mark.parametrize(("code", "requeued"), [("75", True), ("0", False), ("2", False)])
def test_training_that_was_stopped_is_queued_again(repository, elsewhere, code, requeued):
    script = repository / TRAIN.relative_to(REPOSITORY)
    done = run("sbatch", str(script), cwd=elsewhere, STAND_IN_CODE=code)
    assert done.returncode == int(code)
    log = repository / "scontrol.log"
    assert ("requeue 17" in log.read_text() if log.exists() else False) == requeued
