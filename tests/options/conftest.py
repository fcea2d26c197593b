"""Option files for tests that change them, with everything that they name."""

import pytest

from dlgsanet.options.parse import load_yaml
from tests.conftest import REPOSITORY

FILES = {
    phase: next(REPOSITORY.glob(f"options/{phase}/{phase}_SISR_ClassicDIV2K_Tiny_48C3G3B_DLGSANet_SRx2*.yml"))
    for phase in ("train", "test")
}


def place(options, folder):
    """Make the data roots and weights that options name, empty."""
    for data_set in options["datasets"].values():
        for key in ("dataroot_gt", "dataroot_lq"):
            (folder / data_set[key]).mkdir(parents=True, exist_ok=True)
    if weights := options["path"].get("pretrain_network_g"):
        (folder / weights).parent.mkdir(parents=True, exist_ok=True)
        (folder / weights).touch()


@pytest.fixture(params=["train"])
def options(request, tmp_path, monkeypatch):
    """The Tiny x2 options with data roots and weights that exist."""
    monkeypatch.chdir(tmp_path)
    options = load_yaml(FILES[request.param])
    place(options, tmp_path)
    return options
