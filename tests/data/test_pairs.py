"""One pair finder for training, validation, testing and benchmarks: what one of them accepts, the others do."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.pairs import check_sizes, find_pairs, find_pairs_in
from dlgsanet.errors import UserError
from dlgsanet.evaluation.testing import pairs_to_test
from dlgsanet.files import write_whole


@pytest.fixture
def root(photo_root, tmp_path) -> Path:
    """A data root of the three photographs as folders and as LMDB."""
    root = Path(shutil.copytree(photo_root, tmp_path / "Photos"))
    assert main(["data", "lmdb", str(root), "--scales", "4"]) == 0
    return root


def folders(root: Path, **more) -> dict:
    lr = str(root / "LR_bicubic/X4")
    return {"name": "P", "dataroot_gt": str(root / "HR"), "dataroot_lq": lr, "filename_tmpl": "{}x4", **more}


def lmdb(root: Path, **more) -> dict:
    gt, lq = str(root / "HR.lmdb"), str(root / "LR_bicubic_X4.lmdb")
    return {"name": "P", "dataroot_gt": gt, "dataroot_lq": lq, "io_backend": {"type": "lmdb"}, **more}


def meta_info(path: Path, *names: str) -> dict:
    path.write_text("".join(f"{name}.png (1,1,3)\n" for name in names))
    return {"meta_info_file": str(path)}


@pytest.mark.parametrize("stored", [folders, lmdb])
def test_training_and_testing_read_the_same_pairs(root, tmp_path, stored):
    for more in ({}, meta_info(tmp_path / "meta.txt", "coffee", "astronaut")):
        opt = stored(root, **more)
        trained_on = [(s["lq"], s["gt"]) for s in CachedPairedImageDataset(opt | {"phase": "val", "scale": 4})]
        pairs = pairs_to_test(opt)
        assert [p.name for p in pairs] == (["coffee", "astronaut"] if more else ["astronaut", "chelsea", "coffee"])
        for (lq, gt), pair in zip(trained_on, pairs, strict=True):
            for tensor, image in zip((lq, gt), pair.read(4), strict=True):
                assert np.array_equal((tensor * 255).round().numpy().transpose(1, 2, 0), image)


def test_a_data_root_is_read_from_lmdb_where_it_has_no_folders(root):
    of_folders = [pair.read(4) for pair in find_pairs_in(root, 4)]
    shutil.rmtree(root / "HR")
    shutil.rmtree(root / "LR_bicubic")
    of_lmdb = find_pairs_in(root, 4)
    assert len(of_lmdb) == 3
    for pair, images in zip(of_lmdb, of_folders, strict=True):
        assert all(map(np.array_equal, pair.read(4), images))


@pytest.mark.parametrize("stored", [folders, lmdb])
def test_pairs_go_to_another_process(root, stored):
    pairs = find_pairs(stored(root))
    again = pickle.loads(pickle.dumps(pairs))
    assert again == pairs
    assert all(map(np.array_equal, again[0].read(4), pairs[0].read(4)))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda root: (root / "LR_bicubic/X4/coffeex4.png").unlink(), "dataroot_lq.*coffeex4.png"),
        (lambda root: (root / "HR/coffee.png").unlink(), "dataroot_gt.*coffeex4"),
        (lambda root: shutil.copy(root / "HR/coffee.png", root / "HR/coffee.bmp"), "coffee.bmp.*coffee.png"),
    ],
)
def test_all_refuse_the_same_folders(root, harm, named):
    harm(root)
    opt = folders(root)
    for read in (pairs_to_test, lambda opt: CachedPairedImageDataset(opt | {"phase": "val", "scale": 4})):
        with pytest.raises(UserError, match=named):
            read(opt)
    with pytest.raises(UserError, match=named):
        find_pairs_in(root, 4)


@pytest.mark.parametrize(("folder", "scale", "absent"), [("HR", 4, "HR/HR"), ("", 8, "LR_bicubic/X8")])
def test_a_folder_that_is_no_data_root_is_named_with_what_one_has(root, folder, scale, absent):
    with pytest.raises(UserError, match=f"no folder {root / absent}; a test set has HR and LR_bicubic/X{scale}"):
        find_pairs_in(root / folder, scale)


@pytest.mark.parametrize("template", ["{", "{0.x}", "{1}", "{a}", "{:d}"])
def test_a_bad_template_is_named(root, template):
    with pytest.raises(UserError, match="filename_tmpl"):
        find_pairs(folders(root, filename_tmpl=template))


def test_a_meta_info_file_that_is_not_text(root, tmp_path):
    (tmp_path / "meta.txt").write_bytes(b"caf\xe9.png (1,1,3)\n")
    for opt in (folders(root), lmdb(root)):
        with pytest.raises(UserError, match=r"meta_info_file: .*meta.txt"):
            find_pairs(opt | {"meta_info_file": str(tmp_path / "meta.txt")})


def test_sizes_that_do_not_fit_are_all_named(root):
    for stem in ("astronaut", "coffee"):
        path = root / f"LR_bicubic/X4/{stem}x4.png"
        write_whole(path, png_bytes(read_image(path)[1:]))
    with pytest.raises(UserError, match=r"2 of 3 pairs .*astronautx4.png.*coffeex4.png"):
        check_sizes(find_pairs_in(root, 4), 4)


def test_names_that_are_not_utf8_are_printable(root):
    """Such a name cannot be stored in UTF-8 files; the pair has one that can."""
    for folder, name in (("HR", b"caf\xe9.png"), ("LR_bicubic/X4", b"caf\xe9x4.png")):
        source = next((root / folder).glob("coffee*"))
        os.rename(source, os.path.join(os.fsencode(root / folder), name))
    pair = next(pair for pair in find_pairs_in(root, 4) if pair.name.startswith("caf"))
    assert pair.name == "caf\\xe9"
    assert pair.sizes(4) == ((200, 150), (50, 37))
    assert pair.read(4)[1].shape == (200, 148, 3)
    f"{pair.name} {pair.lq.name} {pair.gt.name}".encode()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_turned_tiff(root, orientation):
    """Pillow turns the size of some when it reads the header."""
    gt = root / "HR/coffee.png"
    back = {5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose that undoes the turn of an orientation
    with Image.open(gt) as image:
        stored = image.transpose(back[orientation]) if orientation in back else image.copy()
    stored.save(gt.with_suffix(".tif"), tiffinfo={274: orientation})
    gt.unlink()
    pair = next(pair for pair in find_pairs_in(root, 4) if pair.name == "coffee")
    assert pair.sizes(4)[0] == (200, 150)
    assert pair.read(4)[1].shape == (200, 148, 3)
