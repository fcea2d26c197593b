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

from dlgsanet.options.parse import load_yaml
from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "demo_sbatch_file").glob("*/*.sh"))
OPTIONS = sorted(REPOSITORY.glob("options/*/*.yml"))
TRAIN = next(path for path in SCRIPTS if path.stem.startswith("train_SISR_ClassicDIV2K_Large"))
TEST = next(path for path in SCRIPTS if path.stem.startswith("test_SISR_ClassicDIV2K_Large"))

# Stands for dlgsanet/train.py and dlgsanet/test.py: writes down how it was called, ends with the code that it is given.
COMMAND = """
import json, os, sys
slurm = {key: value for key, value in os.environ.items() if key.startswith("SRUN_")}
json.dump({"argv": sys.argv, "cwd": os.getcwd(), "slurm": slurm}, open("called.json", "w"))
sys.exit(int(os.environ.get("STAND_IN_CODE", "0")))
"""
# Stands for torch where the scripts count GPUs.
TORCH = "import os\nclass cuda: device_count = lambda: len(os.environ['CUDA_VISIBLE_DEVICES'].split(','))\n"
SBATCH = """#!/bin/sh
# A stand-in for sbatch: copies the script to a spool folder and runs the copy, from the folder of submission.
cp "$1" spool/slurm_script
export SLURM_JOB_ID=17 SLURM_JOB_NAME=job SLURM_NTASKS=${STAND_IN_TASKS:-1} SUBMITTED="$(realpath "$1")"
export SLURM_SUBMIT_DIR="$PWD" SLURM_CPUS_PER_TASK=8
shift
exec sh spool/slurm_script "$@" >job-17.out
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
    (root / "torch.py").write_text(TORCH)
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
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def called(repository: Path) -> dict:
    return json.loads((repository / "called.json").read_text())


def directives(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH (--[\w-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE))


def test_every_option_file_has_its_script():
    assert {path.stem for path in SCRIPTS} == {path.stem for path in OPTIONS}


def test_every_network_of_the_paper_is_trained_and_tested_under_one_name():
    names = {path.stem for path in SCRIPTS if "ClassicDIV2K" in path.stem and "_LMDB_" not in path.stem}
    assert {name.removeprefix("test_") for name in names if name.startswith("test_")} == {
        name.removeprefix("train_") for name in names if name.startswith("train_")
    }
    assert len(names) == 24


def test_job_names_differ_in_the_eight_letters_that_squeue_shows():
    names = [directives(path)["--job-name"] for path in SCRIPTS]
    assert len(set(names)) == len(SCRIPTS)
    assert max(map(len, names)) <= 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_have_real_sbatch_lines_and_name_their_option_file(script):
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n#SBATCH ")
    assert len(directives(script)) == text.count("#SBATCH")
    options = REPOSITORY / re.search(r"^options=(\S+)$", text, re.MULTILINE)[1]
    assert options.stem == script.stem
    assert ("--gres" in directives(script)) == (load_yaml(options)["num_gpu"] != 0)
    assert ("--signal" in directives(script)) == (options.parent.name == "train")
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
    assert ("--auto-resume" in call["argv"]) == (command == "train")


@pytest.mark.parametrize(("script", "visible", "ranks"), [(TRAIN, "0,3", "2"), (TRAIN, "3", None), (TEST, "0,3", None)])
def test_under_a_shell_each_visible_gpu_has_a_process(repository, elsewhere, script, visible, ranks):
    (elsewhere.parent / "bin/torchrun").write_text('#!/bin/sh\necho "$@"\n')
    (elsewhere.parent / "bin/torchrun").chmod(0o755)
    path = repository / script.relative_to(REPOSITORY)
    done = run("sh", str(path), cwd=elsewhere, CUDA_VISIBLE_DEVICES=visible)
    assert done.returncode == 0, done.stderr
    assert (f"--nproc_per_node={ranks}" in done.stdout) == (ranks is not None)
    assert (repository / "called.json").exists() == (ranks is None)


@pytest.mark.parametrize("tasks", ["1", "8"])
def test_under_slurm_which_runs_a_copy(repository, elsewhere, tasks):
    script = repository / TRAIN.relative_to(REPOSITORY)
    done = run("sbatch", str(script), cwd=elsewhere, STAND_IN_TASKS=tasks)
    assert done.returncode == 0, done.stderr
    assert called(repository)["cwd"] == str(repository)
    assert ("slurm" in called(repository)["argv"]) == (tasks == "8")
    assert called(repository)["slurm"] == {"SRUN_CPUS_PER_TASK": "8"}


def test_nothing_is_left_where_the_job_was_submitted(repository, elsewhere):
    """Logs go to the repository's slurm_logs, which git ignores; what slurm itself reports too."""
    assert run("sbatch", str(repository / TRAIN.relative_to(REPOSITORY)), cwd=elsewhere).returncode == 0
    assert not [*elsewhere.glob("*.out")]
    assert f"log: {repository}/slurm_logs/job-17.log" in (repository / "slurm_logs/job-17.0.out").read_text()
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


@pytest.mark.parametrize("command", ["upscale", "benchmark", "train"])
def test_a_job_array_gives_every_job_its_part(repository, elsewhere, command):
    array = repository / "demo_sbatch_file/job_array.sh"
    program = elsewhere.parent / "bin/dlgsanet"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = run("sh", str(array), command, "my pictures", "-o", "out", cwd=elsewhere)
    if command == "train":
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.stdout.splitlines() == [command, "my pictures", "-o", "out", "--shard", "slurm"]
    assert re.fullmatch(r"0-\d+", directives(array)["--array"])
