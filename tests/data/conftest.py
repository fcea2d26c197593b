"""Small data sets of scikit-image's photographs, laid out by the project's own preparation."""

from pathlib import Path

import pytest
from skimage import data as photographs

from dlgsanet.data.images import png_bytes
from dlgsanet.data.layout import lay_out
from dlgsanet.data.sources import images_of
from dlgsanet.files import write_whole

PHOTOGRAPHS = {
    "astronaut": photographs.astronaut()[100:292, 150:350],  # 192x200
    "chelsea": photographs.chelsea()[50:200, 100:251],  # 150x151
    "coffee": photographs.coffee()[100:300, 200:350],  # 200x150
}


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """A folder of the three photographs; tests only read it."""
    folder = tmp_path_factory.mktemp("originals")
    for name, image in PHOTOGRAPHS.items():
        write_whole(folder / f"{name}.png", png_bytes(image))
    return folder


@pytest.fixture(scope="session")
def photo_root(originals, tmp_path_factory) -> Path:
    """HR and LR_bicubic/X2, X3, X4 of the three photographs; tests only read it."""
    outcome = lay_out(images_of(originals), tmp_path_factory.mktemp("datasets") / "Photos", [2, 3, 4])
    assert outcome.images == 3
    assert not outcome.skipped
    return outcome.root
