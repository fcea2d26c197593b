"""Places and pictures that tests share."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter, which is chosen when Triton is imported; torch.compile does so.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

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
