"""A training job on a stand-in for slurm: submitted, warned before its time limit, queued again, finished."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.training.conftest import Workplace, identical

NAME = "train_SISR_ClassicDIV2K_Tiny_48C3G3B_DLGSANet_SRx2_scratch_img_size_48_lr5e_4"

# Runs a copy of the script, as slurm does, and again as long as `scontrol requeue` was called meanwhile.
SBATCH = """#!/bin/sh
cp "$1" spool/slurm_script
export SLURM_JOB_ID=17 SLURM_JOB_NAME=job SLURM_NTASKS=$TASKS SLURM_STEP_NODELIST=localhost
export SUBMITTED="$(realpath "$1")" REQUEUED="$PWD/requeued"
shift
while
    rm -f "$REQUEUED"
    sh spool/slurm_script "$@" &
    echo $! >batch.pid
    wait $!
    echo $? >>codes
    [ -e "$REQUEUED" ]
do :; done
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
"show hostnames") echo localhost ;;
"show job") echo "   Command=$SUBMITTED" ;;
"requeue 17") touch "$REQUEUED" ;;
*) exit 1 ;;
esac
"""
# Starts the tasks, passes signals on to them, and ends with the largest of their exit codes.
SRUN = (
    f"#!{sys.executable}"
    + """
import os, signal, subprocess, sys
tasks = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
)
OVERRIDES = [
    "datasets:train:gt_size=24", "datasets:train:num_worker_per_gpu=0", "datasets:train:patches_per_image=2",
    "network_g:dim=12", "network_g:groups=1", "network_g:blocks=1", "network_g:window_size=3", "train:total_iter=40",
    "train:ema_decay=0.9", "val:val_freq=6", "logger:print_freq=1", "logger:use_tb_logger=false", f"name={NAME}",
]  # fmt: skip


# Not a link: that would leave the virtual environment.
PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


def checkout(workplace: Workplace, **programs: str) -> Path:
    """A checkout with data where the option file expects them, and these programs in its `.venv/bin`."""
    root = workplace.folder / "cluster"
    for name in ("demo_sbatch_file", "options"):
        shutil.copytree(REPOSITORY / name, root / name)
    (root / "dlgsanet").symlink_to(REPOSITORY / "dlgsanet")
    (root / ".venv/bin").mkdir(parents=True)
    for name, text in ({"python": PYTHON} | programs).items():
        (root / ".venv/bin" / name).write_text(text)
        (root / ".venv/bin" / name).chmod(0o755)
    for name, part in (("DIV2K", "train"), ("Set5", "val")):
        (root / "datasets" / name / "LR_bicubic").mkdir(parents=True)
        (root / "datasets" / name / "HR").symlink_to((workplace.folder / part / "HR").resolve())
        (root / "datasets" / name / "LR_bicubic/X2").symlink_to((workplace.folder / part / "X2").resolve())
    return root


@pytest.fixture
def cluster(workplace, monkeypatch):
    """A folder to submit from, which is the repository too."""
    root = checkout(workplace, sbatch=SBATCH, scontrol=SCONTROL, srun=SRUN)
    (root / "spool").mkdir()
    monkeypatch.setenv("PATH", f"{root}/.venv/bin:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


def submit(cluster, tasks: int, *overrides: str) -> subprocess.Popen:
    script = f"demo_sbatch_file/SISR_ClassicDIV2K/{NAME}.sh"
    command = ["sbatch", script, "--force_yml", *OVERRIDES, *overrides]
    return subprocess.Popen(command, cwd=cluster, env=os.environ | {"TASKS": str(tasks)}, stdout=subprocess.DEVNULL)


@pytest.mark.long
@pytest.mark.parametrize("tasks", [1, 2])
def test_job_is_warned_queued_again_and_ends_as_if_it_had_not_been(cluster, workplace, tasks):
    whole = submit(cluster, tasks, f"datasets:train:batch_size_per_gpu={4 // tasks}", "name=whole")
    assert whole.wait(timeout=600) == 0
    job = submit(cluster, tasks, f"datasets:train:batch_size_per_gpu={4 // tasks}")
    log = cluster / "slurm_logs/job-17.log"
    before = log.read_text()
    while " 4/40" not in log.read_text()[len(before) :]:
        assert job.poll() is None, log.read_text()
        time.sleep(0.01)
    os.kill(int((cluster / "batch.pid").read_text()), signal.SIGUSR1)
    assert job.wait(timeout=600) == 0, log.read_text()
    assert (cluster / "codes").read_text().split() == ["0", "75", "0"], log.read_text()
    workplace.folder = cluster
    assert identical(workplace.checkpoint(40, NAME), workplace.checkpoint(40, "whole"))
