"""Job scripts in a real slurm (Debian's slurmctld, slurmd and munge), brought up for the test on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.conftest import identical
from tests.training.test_slurm import NAME, OVERRIDES, checkout

DAEMONS = ("munged", "slurmctld", "slurmd")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, DAEMONS)),
        reason="needs root and slurm: apt-get install slurmctld slurmd munge",
    ),
]
# A node that has what the scripts ask for, whatever this machine has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
GresTypes=gpu
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which slurm's commands reach the daemons."""
    root = tmp_path_factory.mktemp("slurm")
    for folder in ("munge", "state", "spool"):
        (root / folder).mkdir(mode=0o755)
    for folder in (root, *list(root.parents)[:3]):  # munge refuses a socket that others cannot reach
        folder.chmod(folder.stat().st_mode | 0o011)
    key = root / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"ctld": one.getsockname()[1], "slurmd": other.getsockname()[1]}
    (root / "slurm.conf").write_text(CONFIGURATION.format(root=root, host=socket.gethostname().split(".")[0], **ports))
    (root / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--socket={root}/munge/socket", f"--key-file={key}"]
    munge += [f"--{name}-file={root}/munge/{name}" for name in ("pid", "log", "seed")]
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with open(root / f"{command[0]}.said", "w") as said:
                daemons.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            time.sleep(2)
        wait_until(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%t"), 60, lambda: logs(root))
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def logs(folder: Path) -> str:
    files = [*folder.glob("*.log"), *folder.glob("*.said"), *folder.glob("*/*.log"), *folder.glob("*/*.out")]
    return "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in files)


def wait_until(done, seconds: float, otherwise) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.1)


@pytest.fixture
def repository(workplace):
    """A checkout to submit from another folder."""
    root = checkout(workplace)
    (workplace.folder / "elsewhere").mkdir()
    return root


def submit(slurm: dict[str, str], repository: Path, *overrides: str, options: tuple[str, ...] = ()) -> str:
    """Submit the training script from another folder; the job's number."""
    script = repository / f"demo_sbatch_file/SISR_ClassicDIV2K/{NAME}.sh"
    command = ["sbatch", "--parsable", *options, script, "--force-yml", *OVERRIDES, *overrides]
    environment = slurm | {"OMP_NUM_THREADS": "1"}
    folder = repository.parent / "elsewhere"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(slurm: dict[str, str], job: str) -> str:
    return ask(slurm, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def test_jobs_finish_and_a_job_that_is_warned_is_queued_again(slurm, repository, workplace):
    whole = submit(slurm, repository, "name=whole", "datasets:train:batch_size_per_gpu=4")
    log = repository / f"slurm_logs/Tinyx2-{whole}.log"
    wait_until(lambda: " 2/40" in (log.read_text() if log.exists() else ""), 600, lambda: logs(repository))
    assert "CPUs=8" in ask(slurm, "scontrol", "show", "step", f"{whole}.0")  # srun got the job's --cpus-per-task
    assert ask(slurm, "squeue", "-h", "-j", whole, "-o", "%.8j").strip() == "Tinyx2"
    wait_until(lambda: "COMPLETED" in state(slurm, whole), 600, lambda: state(slurm, whole) + logs(repository))
    assert not any((repository.parent / "elsewhere").iterdir())

    job = submit(slurm, repository, "datasets:train:batch_size_per_gpu=4")
    log = repository / f"slurm_logs/Tinyx2-{job}.log"
    wait_until(lambda: " 4/40" in (log.read_text() if log.exists() else ""), 600, lambda: logs(repository))
    assert ask(slurm, "scancel", "--batch", "--signal=USR1", job) == ""
    wait_until(lambda: "exit code 75" in log.read_text(), 600, lambda: logs(repository))
    wait_until(lambda: "COMPLETED" in state(slurm, job), 600, lambda: state(slurm, job) + logs(repository))
    assert "from iteration" in log.read_text()
    workplace.folder = repository
    assert identical(workplace.checkpoint(40, NAME), workplace.checkpoint(40, "whole"))


def test_a_script_that_asks_for_a_gpu_runs_where_there_is_none_if_told_so(slurm, repository):
    one = ("datasets:train:batch_size_per_gpu=4", "name=none", "train:total_iter=1")
    job = submit(slurm, repository, *one, options=("--gres=none",))
    wait_until(lambda: "COMPLETED" in state(slurm, job), 600, lambda: state(slurm, job) + logs(repository))
