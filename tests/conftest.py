"""Places and pictures that tests share."""

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]


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
