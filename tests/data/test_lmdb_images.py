"""LMDB databases that are damaged: one line, and the process lives on."""

import random
import shutil
from pathlib import Path

import lmdb
import pytest

from dlgsanet.cli import main
from dlgsanet.data.lmdb_images import lmdb_images
from dlgsanet.data.storage import write_lmdb
from dlgsanet.errors import UserError


@pytest.fixture(scope="module")
def base(originals, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lmdb") / "HR.lmdb"
    write_lmdb(originals, folder)
    return folder


@pytest.fixture
def copied(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "HR.lmdb"))


def read_all(folder: Path) -> dict[str, bytes]:
    return {key: source.read() for key, source in lmdb_images(folder, "dataroot_gt").items()}


def test_every_value_is_that_of_the_library(tmp_path):
    """Keys of many pages, of deleted ones and of small and large values; two transactions."""
    chosen = random.Random(1)
    values = {f"{n:05d}": chosen.randbytes(chosen.choice([3, 700, 5000, 40_000])) for n in range(3000)}
    (tmp_path / "a.lmdb").mkdir()
    with lmdb.open(str(tmp_path / "a.lmdb"), map_size=1 << 28) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)
        with environment.begin(write=True) as transaction:
            for key in list(values)[::7]:
                transaction.delete(key.encode())
                del values[key]
    (tmp_path / "a.lmdb/meta_info.txt").write_text("".join(f"{key}.png (1,1,3) 1\n" for key in values))
    assert read_all(tmp_path / "a.lmdb") == values


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.5, 0.99])
def test_a_truncated_data_base_is_named(copied, share):
    file = copied / "data.mdb"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"dataroot_gt: .*data.mdb"):
        read_all(copied)


def test_the_command_says_it_in_one_line(copied, tmp_path, capsys):
    (tmp_path / "LR_bicubic_X2.lmdb").mkdir()
    file = copied / "data.mdb"
    file.write_bytes(file.read_bytes()[:20_000])
    assert main(["benchmark", "weights/DLGSANet_Tiny_x2.safetensors", "--data", str(tmp_path), "--runs", "0",
                 "-o", str(tmp_path / "out")]) == 2  # fmt: skip
    assert "data.mdb" in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("failed"))


@pytest.mark.parametrize("content", [b"caf\xe9.png (1,1,3) 1\n", None])
def test_a_meta_info_file_that_is_not_text_or_missing(copied, content):
    (copied / "meta_info.txt").unlink()
    if content:
        (copied / "meta_info.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"dataroot_gt: .*meta_info.txt"):
        read_all(copied)
