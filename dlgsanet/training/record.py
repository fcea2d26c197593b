"""The record of a run: all that is needed to do it again, in ``record_ITERATION.yml`` of its folder, one a start."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import dlgsanet
from dlgsanet.files import write_whole
from dlgsanet.training.introduction import hardware

PACKAGES = ("torch", "torchvision", "basicsr", "numpy", "opencv-python", "opencv-python-headless")
CUPY = ("cupy-cuda12x", "cupy-cuda13x")


def write_record(options: dict[str, Any], iteration: int) -> None:
    """Write the options as resolved, command, versions, revision and hardware of a run that starts at an iteration."""
    if options["rank"] != 0:
        return
    record = {
        "command": sys.argv,
        "options": _plain(options),
        "versions": {"python": platform.python_version(), "dlgsanet": dlgsanet.__version__, **_versions()},
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


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES + CUPY:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, str] | None:
    """The revision of the source and what it was changed by, or None where it is no checkout."""

    def ask(*command: str) -> str:
        folder = Path(dlgsanet.__file__).parent
        return subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True).stdout

    try:
        return {"revision": ask("rev-parse", "HEAD").strip(), "changes": ask("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None
