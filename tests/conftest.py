"""Places and pictures that tests share."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter, which is chosen when Triton is imported; torch.compile does so.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import dlgsanet.basicsr_compat  # noqa: F401  # before a test imports BasicSR or torchvision, which it adapts

REPOSITORY = Path(__file__).parents[1]

# An example has no time limit: a busy machine must not fail a test. The limit of a whole test is in pyproject.toml.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def script(name: str) -> ModuleType:
    """The program `scripts/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str, *arguments: object, **settings: Any) -> subprocess.CompletedProcess:
    """Run code in a process of its own, which can import what is in the repository."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, **settings)


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Run `scripts/NAME.py` in this process, which may have imported what it needs; its exit code."""
    path = str(REPOSITORY / f"scripts/{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    return ended.value.code or 0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The maintainers' folder of benchmarks and golden values, named by DLGSANET_SHARED."""
    folder = os.environ.get("DLGSANET_SHARED")
    if not folder:
        pytest.skip("DLGSANET_SHARED names no folder of benchmark images")
    return Path(folder)


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """A real photograph: uint8 RGB [300, 451, 3] (scikit-image's Chelsea, public domain)."""
    data = pytest.importorskip("skimage.data")
    return data.chelsea()
