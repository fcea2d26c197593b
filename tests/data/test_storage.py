"""Sub-images, LMDB databases and meta-info files, as BasicSR's own data set reads them."""

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlgsanet.commands.data import main
from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.lmdb_images import lmdb_images
from dlgsanet.data.pairs import find_pairs
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole


def data(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def basicsr_dataset(**options):
    import dlgsanet.plugin  # noqa: F401, I001  # adapts BasicSR to today's stack
    from basicsr.data.paired_image_dataset import PairedImageDataset

    return PairedImageDataset({"phase": "val", "scale": 4, "io_backend": {"type": "disk"}, **options})


@pytest.fixture
def root(photo_root, tmp_path) -> Path:
    return Path(shutil.copytree(photo_root, tmp_path / "Photos"))


def test_sub_images_are_pairs_for_basicsr(root):
    data("subimages", root, "--size", 96, "--step", 48, "--scales", 4)
    assert sorted(path.name for path in (root / "HR_sub").glob("astronaut*")) == [
        f"astronaut_s{number:03d}.png"
        for number in range(1, 13)  # 192x200: 3 rows of 4
    ]
    pairs = basicsr_dataset(dataroot_gt=str(root / "HR_sub"), dataroot_lq=str(root / "LR_bicubic/X4_sub"))
    hr, lr = read_image(root / "HR/astronaut.png"), read_image(root / "LR_bicubic/X4/astronautx4.png")
    # The last of the second row, flush with the right border.
    pair = next(pair for pair in pairs if "astronaut_s008" in pair["gt_path"])
    np.testing.assert_array_equal(as_uint8(pair["gt"]), hr[48:144, 104:200])
    np.testing.assert_array_equal(as_uint8(pair["lq"]), lr[12:36, 26:50])


def as_uint8(image) -> np.ndarray:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def test_sub_images_of_odd_sizes_begin_on_whole_lr_pixels(root):
    data("subimages", root, "--size", 96, "--step", 48)
    for scale in (2, 3, 4):
        pairs = basicsr_dataset(
            scale=scale,
            phase="train",
            gt_size=96,
            use_hflip=False,
            use_rot=False,
            dataroot_gt=str(root / "HR_sub"),
            dataroot_lq=str(root / f"LR_bicubic/X{scale}_sub"),
        )
        for pair in pairs:  # a crop of the whole piece: BasicSR refuses pairs that do not fit
            assert pair["gt"].shape == (3, 96, 96)
            assert pair["lq"].shape == (3, 96 // scale, 96 // scale)


def test_threshold_leaves_out_a_narrow_rest(root):
    data("subimages", root, "--size", 96, "--step", 48, "--threshold", 8, "--scales", 4)
    assert len(list((root / "HR_sub").glob("astronaut*"))) == 9  # 192x200: the rest of 8 columns is not cut


def test_sub_images_again_and_by_another_recipe(root):
    data("subimages", root, "--size", 96, "--step", 48, "--scales", 4)
    piece = root / "HR_sub/coffee_s001.png"
    written = piece.stat().st_mtime_ns
    (root / "HR_sub/coffee_s002.png").unlink()
    data("subimages", root, "--size", 96, "--step", 48, "--scales", 4)
    assert (root / "HR_sub/coffee_s002.png").exists()
    assert piece.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"HR_sub was made by Recipe\(size=96, step=48, threshold=0\)"):
        data("subimages", root, "--size", 48, "--step", 48, "--scales", 4)
    # The last pieces of 200x150 pixels would be others: those of HR are there, and those of X3 would not fit them.
    with pytest.raises(UserError, match=r"multiples of 4, not by .* multiples of 3; remove it, and cut all scales"):
        data("subimages", root, "--size", 96, "--step", 48, "--scales", 3)
    assert not list((root / "LR_bicubic/X3_sub").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", 100], "--size: must be a multiple of every scale, of 12, not 100"),
        (["--step", 10], "--step: must be a multiple of every scale, of 12, not 10"),
        (["--size", 168, "--step", 24], "images skipped: 2, listed above"),
    ],
)
def test_sub_images_that_cannot_be(root, arguments, message, capsys):
    with pytest.raises(UserError, match=message):
        data("subimages", root, *arguments)
    if "skipped" in message:
        assert "chelsea.png: 144x144 pixels are too few for 168x168" in capsys.readouterr().err
        assert list((root / "HR_sub").glob("astronaut*"))


def test_an_lr_image_missing_or_of_another_scale_is_skipped(root, capsys):
    (root / "LR_bicubic/X2/coffeex2.png").unlink()
    shutil.copy(root / "LR_bicubic/X4/chelseax4.png", root / "LR_bicubic/X3/chelseax3.png")
    with pytest.raises(UserError, match="images skipped: 2"):
        data("subimages", root, "--size", 96, "--step", 48)
    printed = capsys.readouterr().err
    assert "coffeex2.png: there is no such file" in printed
    assert "chelseax3.png is not 1/3 of" in printed


def test_lmdb_reads_the_same_with_basicsr_and_with_ours(root):
    data("lmdb", root, "--scales", 4)
    stored = {
        "name": "Photos",
        "scale": 4,
        "phase": "val",
        "dataroot_gt": str(root / "HR.lmdb"),
        "dataroot_lq": str(root / "LR_bicubic_X4.lmdb"),
        "io_backend": {"type": "lmdb"},
    }
    ours = list(CachedPairedImageDataset(stored))
    theirs = list(basicsr_dataset(**stored))
    plain = list(
        basicsr_dataset(dataroot_gt=str(root / "HR"), dataroot_lq=str(root / "LR_bicubic/X4"), filename_tmpl="{}x4")
    )
    assert len(ours) == len(theirs) == len(plain) == 3
    for one, two, three in zip(ours, theirs, sorted(plain, key=lambda pair: pair["gt_path"]), strict=True):
        assert one["gt_path"] == two["gt_path"] == Path(three["gt_path"]).stem
        for kind in ("lq", "gt"):
            assert one[kind].equal(two[kind])
            assert one[kind].equal(three[kind])


def test_lmdb_of_sub_images(root):
    data("subimages", root, "--size", 96, "--step", 48, "--scales", 2)
    with pytest.raises(UserError, match="X3_sub; `dlgsanet data subimages` cuts them"):
        data("lmdb", root, "--sub")  # of all scales that the root has
    assert not list(root.glob("*.lmdb"))
    data("lmdb", root, "--scales", 2, "--sub")
    lines = (root / "HR_sub.lmdb/meta_info.txt").read_text().splitlines()
    assert "coffee_s001.png (96,96,3) 1" in lines
    assert len(lines) == len(list((root / "HR_sub").glob("*.png")))
    assert (root / "LR_bicubic_X2_sub.lmdb/data.mdb").exists()


def test_scales_are_those_of_the_root(root):
    shutil.rmtree(root / "LR_bicubic/X3")
    data("subimages", root, "--size", 96, "--step", 48)
    data("lmdb", root)
    assert sorted(path.name for path in (root / "LR_bicubic").iterdir()) == ["X2", "X2_sub", "X4", "X4_sub"]
    assert sorted(path.name for path in root.glob("*.lmdb")) == ["HR.lmdb", "LR_bicubic_X2.lmdb", "LR_bicubic_X4.lmdb"]


def test_lmdb_that_is_there_is_kept(root, capsys):
    data("lmdb", root, "--scales", 4)
    written = (root / "HR.lmdb/data.mdb").stat().st_mtime_ns
    data("lmdb", root, "--scales", 4)
    assert (root / "HR.lmdb/data.mdb").stat().st_mtime_ns == written
    assert "HR.lmdb: is there already" in capsys.readouterr().out


def test_lmdb_of_a_damaged_image_is_not_made(root):
    write_whole(root / "HR/coffee.png", b"")
    write_whole(root / "HR/chelsea.png", b"text")
    with pytest.raises(
        UserError, match=r"cannot be used \(2\): .*chelsea.png: not an image; .*coffee.png: the file is empty"
    ):
        data("lmdb", root)
    assert not list(root.glob("*.lmdb*"))
    assert not list(root.glob(".*.lmdb*"))


def test_lmdb_keys_must_be_readable(root):
    os.rename(root / "HR/coffee.png", root / "HR/coffee.v2.png")
    with pytest.raises(UserError, match=r"LMDB keys are ASCII names of one line without dots; rename coffee.v2.png"):
        data("lmdb", root)


def test_lmdb_names_what_its_list_of_keys_cannot_hold(root):
    os.rename(root / "HR/coffee.png", root / "HR/two\nlines.png")
    with pytest.raises(UserError, match=r"rename two\\nlines.png"):
        data("lmdb", root)
    assert not (root / "HR.lmdb").exists()


def test_lmdb_without_room(root):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*HR.lmdb"):
            data("lmdb", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(root.glob("*.lmdb*"))
    assert not list(root.glob(".*.lmdb*"))


def test_meta_info_is_what_basicsr_reads(root, tmp_path):
    write_whole(root / "HR/gray.png", png_bytes(np.zeros((20, 30), np.uint8)))
    data("meta-info", root / "HR", tmp_path / "meta.txt")
    lines = (tmp_path / "meta.txt").read_text().splitlines()
    assert lines == [
        "astronaut.png (192,200,3)",
        "chelsea.png (150,151,3)",
        "coffee.png (200,150,3)",
        "gray.png (20,30,1)",
    ]
    (tmp_path / "meta.txt").write_text("\n".join(lines[:2]) + "\n")
    pairs = basicsr_dataset(
        dataroot_gt=str(root / "HR"),
        dataroot_lq=str(root / "LR_bicubic/X4"),
        filename_tmpl="{}x4",
        meta_info_file=str(tmp_path / "meta.txt"),
    )
    assert [Path(pair["gt_path"]).name for pair in pairs] == ["astronaut.png", "chelsea.png"]


def test_meta_info_that_cannot_be_written_is_found_before_images_are_read(root, tmp_path, monkeypatch):
    monkeypatch.setattr("dlgsanet.data.storage.for_each", None)
    with pytest.raises(UserError, match="HR/new"):
        data("meta-info", root / "HR", next((root / "HR").iterdir()) / "HR/new")


def test_meta_info_names_damaged_images(root, tmp_path):
    write_whole(root / "HR/coffee.png", (root / "HR/coffee.png").read_bytes()[:9000])
    with pytest.raises(UserError, match=r"cannot be read \(1\): .*coffee.png: .*truncated"):
        data("meta-info", root / "HR", tmp_path / "meta.txt")
    assert not (tmp_path / "meta.txt").exists()


def test_a_data_base_may_be_in_use_twice(root):
    data("lmdb", root, "--scales", 4)
    opt = {
        "dataroot_gt": str(root / "HR.lmdb"),
        "dataroot_lq": str(root / "LR_bicubic_X4.lmdb"),
        "io_backend": {"type": "lmdb"},
    }
    first, second = find_pairs(opt), find_pairs(opt)
    assert [pair.gt.read() for pair in first] == [pair.gt.read() for pair in second]


def test_a_key_without_an_image_is_named(root):
    data("lmdb", root, "--scales", 4)
    with open(root / "HR.lmdb/meta_info.txt", "a") as meta_info:
        meta_info.write("ghost.png (1,1,3) 1\n")
    with pytest.raises(UserError, match=r"dataroot_gt: .*HR.lmdb has no image 'ghost'"):
        lmdb_images(root / "HR.lmdb", "dataroot_gt")


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two words.png", "line\u2028s.png".encode(), b"two\nlines.png"])
def test_meta_info_names_what_it_cannot_hold(root, tmp_path, name):
    os.rename(root / "HR/coffee.png", os.path.join(os.fsencode(root / "HR"), name))
    with pytest.raises(UserError, match="rename") as refused:
        data("meta-info", root / "HR", tmp_path / "meta.txt")
    str(refused.value).encode()
    assert name.split()[0].decode(errors="backslashreplace")[:4] in str(refused.value)
    assert not (tmp_path / "meta.txt").exists()


def test_lmdb_names_what_is_not_utf8(root):
    os.rename(root / "HR/coffee.png", os.path.join(os.fsencode(root / "HR"), b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"rename caf\\xe9.png"):
        data("lmdb", root)


def test_a_damaged_recipe_of_sub_images_is_named(root):
    (root / "HR_sub").mkdir()
    (root / "HR_sub/.recipe").write_bytes(b"\xff")
    with pytest.raises(UserError, match="HR_sub was made by"):
        data("subimages", root, "--size", 96, "--step", 48, "--scales", 4)


@pytest.mark.parametrize("command", ["lmdb", "subimages"])
def test_originals_of_the_same_name_are_refused(root, command):
    """One would take the place of the other."""
    write_whole(root / "HR/coffee.jpg", (root / "HR/coffee.png").read_bytes())
    with pytest.raises(UserError, match=r"coffee.jpg and .*coffee.png have the same name"):
        data(command, root, "--scales", 4)
