"""The record of a run: everything that is needed to repeat it. ``record_ITERATION.yml``, one file per start."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

import dlgsanet
from dlgsanet.files import write_whole
from dlgsanet.packages import versions
from dlgsanet.training.introduction import hardware


def write_record(options: dict[str, Any], iteration: int) -> None:
    """Write the options as resolved, command, versions, revision and hardware of a run that starts at an iteration."""
    if options["rank"] != 0:
        return
    installed = {name: version for name, version in versions().items() if version}
    record = {
        "command": sys.argv,
        "options": _plain(options),
        "versions": {"python": platform.python_version(), "dlgsanet": dlgsanet.__version__, **installed},
        "git": _git(),
        "hardware": {
            "machine": platform.platform(),
            "device": hardware(options["num_gpu"]),
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
        },
    }
    path = Path(options["path"]["experiments_root"]) / f"record_{iteration}.yml"
    write_whole(path, yaml.safe_dump(record, sort_keys=False).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _git() -> dict[str, str] | None:
    """The revision of the source and its uncommitted changes; None: it is not a checkout."""

    def ask(*command: str) -> str:
        folder = Path(dlgsanet.__file__).parent
        done = subprocess.run(["git", "-C", folder, *command], capture_output=True, check=True)
        return done.stdout.decode(errors="replace")  # files may be in another encoding

    try:
        return {"revision": ask("rev-parse", "HEAD").strip(), "changes": ask("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None
