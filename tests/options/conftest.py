"""Option files for tests that change them, with everything that they name."""

import pytest
import yaml

from dlgsanet.errors import UserError
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import read_options
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


def change(options, changes):
    """Set options by their places: `train.optim_g.lr`."""
    for where, value in changes.items():
        *keys, last = where.split(".")
        inner = options
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = value


def read(options, is_train=True, **arguments):
    """Read options, or the text of a file, from `file.yml`."""
    with open("file.yml", "w") as file:
        file.write(options if isinstance(options, str) else yaml.safe_dump(options, allow_unicode=True))
    return read_options("file.yml", is_train, **arguments)


def fault(options, is_train=True, **arguments) -> str:
    """The only line of the message, without the file, with which it begins."""
    with pytest.raises(UserError) as error:
        read(options, is_train, **arguments)
    assert len(str(error.value).splitlines()) == 1, error.value
    assert str(error.value).startswith("file.yml: ")
    return str(error.value).removeprefix("file.yml: ")


@pytest.fixture(params=["train"])
def options(request, tmp_path, monkeypatch):
    """The Tiny x2 options with data roots and weights that exist."""
    monkeypatch.chdir(tmp_path)
    options = load_yaml(FILES[request.param])
    place(options, tmp_path)
    return options
