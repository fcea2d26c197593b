"""`dlgsanet data`: folders and archives of images to data roots, what is damaged, in the way, full or killed."""

import gzip
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from dlgsanet.commands.data import main
from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.known_sets import KNOWN_SETS
from dlgsanet.data.resize import downscale
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from tests.conftest import REPOSITORY

DATA = [sys.executable, "-m", "dlgsanet", "data"]


def prepare(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def files_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def assert_whole(root: Path, originals: Path) -> None:
    """Every original has its HR image and its LR images, to the bit, and there is nothing else."""
    stems = sorted(path.stem for path in originals.iterdir())
    assert files_under(root) == sorted(
        [f"HR/{stem}.png" for stem in stems]
        + [f"LR_bicubic/X{scale}/{stem}x{scale}.png" for stem in stems for scale in (2, 3, 4)]
    )
    for original in originals.iterdir():
        image = read_image(original)
        np.testing.assert_array_equal(read_image(root / f"HR/{original.stem}.png"), image)
        for scale in (2, 3, 4):
            lr = read_image(root / f"LR_bicubic/X{scale}/{original.stem}x{scale}.png")
            np.testing.assert_array_equal(lr, downscale(image, scale))


def test_folder(originals, tmp_path, capsys):
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    assert_whole(tmp_path / "Photos", originals)
    assert "3 images of 91,050 pixels; 12 files written, 0 were there, 0 images skipped" in capsys.readouterr().out


def test_again_does_only_what_is_missing(originals, tmp_path, capsys):
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    hr, lr = tmp_path / "Photos/HR/coffee.png", tmp_path / "Photos/LR_bicubic/X2/coffeex2.png"
    written = hr.stat().st_mtime_ns
    lr.unlink()
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    assert_whole(tmp_path / "Photos", originals)
    assert hr.stat().st_mtime_ns == written
    assert "1 file written, 11 were there" in capsys.readouterr().out


def test_only_the_scales_asked_for(originals, tmp_path):
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path, "--scales", 4)
    assert sorted(path.name for path in (tmp_path / "Photos/LR_bicubic").iterdir()) == ["X4"]


def test_jpegs_are_turned_upright_and_keep_their_pixels(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "in").mkdir()
    Image.fromarray(photographs.chelsea()).save(tmp_path / "in/cat.jpg", quality=95, exif=turned)
    prepare("folder", tmp_path / "in", "--name", "Cats", "--root", tmp_path)
    assert read_image(tmp_path / "Cats/HR/cat.png").shape == (451, 300, 3)
    decoded = np.asarray(Image.open(tmp_path / "in/cat.jpg"))
    np.testing.assert_array_equal(read_image(tmp_path / "Cats/HR/cat.png"), np.rot90(decoded, -1))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_known_set_is_found_among_other_folders(kind, originals, tmp_path):
    """As in the archive of EDSR's authors, next to LR images, another set, and what macOS adds."""
    tree = tmp_path / "benchmark"
    for number in range(5):
        content = (originals / "coffee.png").read_bytes()
        for name in (f"Set5/HR/{number}.png", f"Set5/LR_bicubic/X2/{number}x2.png", f"Other/HR/{number}.png"):
            write_whole(tree / name, content)
        write_whole(tree / f"__MACOSX/Set5/HR/._{number}.png", b"resource fork")
    source = tree
    if kind == "zip":
        source = tmp_path / "archive.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in tree.rglob("*.png"):
                archive.write(path, path.relative_to(tmp_path))
    elif kind != "folder":
        source = tmp_path / f"archive.{kind}"
        with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(tree, "benchmark")
    prepare("set5", source, "--root", tmp_path / "datasets")
    assert_whole(tmp_path / "datasets/Set5", tree / "Set5/HR")


def test_div2k_from_two_archives(originals, tmp_path, monkeypatch):
    small = replace(KNOWN_SETS["div2k"], parts={"DIV2K": 2, "DIV2K_valid": 1})
    monkeypatch.setitem(KNOWN_SETS, "div2k", small)
    for name, stems in (("DIV2K_train_HR", ["astronaut", "coffee"]), ("DIV2K_valid_HR", ["chelsea"])):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for stem in stems:
                archive.write(originals / f"{stem}.png", f"{name}/{stem}.png")
    prepare(
        "div2k", tmp_path / "DIV2K_train_HR.zip", tmp_path / "DIV2K_valid_HR.zip", "--root", tmp_path, "--scales", 2
    )
    assert files_under(tmp_path / "DIV2K/HR") == ["astronaut.png", "coffee.png"]
    assert files_under(tmp_path / "DIV2K_valid") == ["HR/chelsea.png", "LR_bicubic/X2/chelseax2.png"]


def test_wrong_archive_is_reported_with_what_is_in_it(originals):
    with pytest.raises(UserError, match=r"no folder with 14 images \(Set14\); images found: .*originals\d* \(3\)"):
        prepare("set14", originals)


def test_manga109_has_no_public_archive():
    with pytest.raises(UserError, match=r"SOURCE: there is no public archive .* http://www.manga109.org/"):
        prepare("manga109")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.zip", None, "there is no folder or archive"),
        ("broken.zip", b"PK\x03\x04 and no more", "not a folder, ZIP or tar archive, or a damaged one"),
        ("empty.tar", b"", "not a folder, ZIP or tar archive, or a damaged one"),
    ],
)
def test_not_an_archive(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare("folder", tmp_path / name, "--name", "Photos", "--root", tmp_path)


def test_images_in_several_folders_are_not_mixed(originals, tmp_path):
    for folder in ("summer", "winter"):
        write_whole(tmp_path / folder / "a.png", (originals / "coffee.png").read_bytes())
    with pytest.raises(UserError, match=r"images in several folders, name one of them: summer \(1\), winter \(1\)"):
        prepare("folder", tmp_path, "--name", "Photos", "--root", tmp_path / "datasets")


def test_two_images_of_one_name(originals, tmp_path):
    for name in ("a.png", "a.bmp"):
        write_whole(tmp_path / name, (originals / "coffee.png").read_bytes())
    with pytest.raises(UserError, match=r"a.bmp and .*a.png would become the same PNG"):
        prepare("folder", tmp_path, "--name", "Photos", "--root", tmp_path / "datasets")


def damaged_images(folder: Path) -> dict[str, str]:
    """Writes images that cannot be used; returns what is to be said of each."""
    whole = png_bytes(photographs.coffee())
    transparent = np.dstack([photographs.chelsea(), np.full(photographs.chelsea().shape[:2], 128, np.uint8)])
    write_whole(folder / "truncated.png", whole[: len(whole) // 2])
    write_whole(folder / "bitflip.png", whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
    write_whole(folder / "empty.png", b"")
    write_whole(folder / "text.png", b"a text by the name of an image")
    write_whole(folder / "pixel.png", png_bytes(np.zeros((1, 1, 3), np.uint8)))
    write_whole(folder / "glass.png", png_bytes(transparent))
    Image.fromarray(photographs.camera().astype(np.uint16) * 257).save(folder / "deep.png")
    return {
        "truncated.png": "truncated",
        "bitflip.png": "damaged",
        "empty.png": "the file is empty",
        "text.png": "not an image",
        "pixel.png": "1x1 pixels are too few to shrink by 4",
        "glass.png": "has transparent pixels",
        "deep.png": "16 bits",
    }


def test_bad_images_are_skipped_and_reported_all_at_once(originals, tmp_path, capsys):
    expected = damaged_images(tmp_path / "in")
    write_whole(tmp_path / "in/good.png", (originals / "coffee.png").read_bytes())
    write_whole(tmp_path / "in/Thumbs.db", b"not by the name of an image")
    with pytest.raises(UserError, match="images skipped: 7, listed above"):
        prepare("folder", tmp_path / "in", "--name", "Photos", "--root", tmp_path)
    printed = capsys.readouterr().err.splitlines()
    for name, message in expected.items():
        assert any(name in line and message in line for line in printed), (name, printed)
    assert files_under(tmp_path / "Photos/HR") == ["good.png"]
    assert len(files_under(tmp_path / "Photos")) == 4


def test_odd_but_usable_images(tmp_path):
    """A palette, opaque alpha, a JPEG by the name of a PNG, a gray image and a strip 60,000 pixels wide."""
    coffee = Image.fromarray(photographs.coffee())
    (tmp_path / "in").mkdir()
    coffee.quantize(64).save(tmp_path / "in/palette.png")
    coffee.convert("RGBA").save(tmp_path / "in/opaque.png")
    coffee.save(tmp_path / "in/jpeg.png", format="JPEG", quality=95)
    coffee.convert("L").save(tmp_path / "in/gray.png")
    write_whole(tmp_path / "in/strip.png", png_bytes(np.tile(photographs.coffee()[:8], (1, 100, 1))))
    prepare("folder", tmp_path / "in", "--name", "Odd", "--root", tmp_path)
    hr = tmp_path / "Odd/HR"
    assert all(Image.open(path).format == "PNG" for path in hr.iterdir())
    np.testing.assert_array_equal(read_image(hr / "opaque.png"), photographs.coffee())
    np.testing.assert_array_equal(read_image(hr / "palette.png"), np.asarray(coffee.quantize(64).convert("RGB")))
    assert read_image(hr / "gray.png").ndim == 2
    assert read_image(tmp_path / "Odd/LR_bicubic/X4/stripx4.png").shape == (2, 15_000, 3)


def test_an_image_of_another_size_in_the_way_is_named(originals, tmp_path):
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    lr = tmp_path / "Photos/LR_bicubic/X2/coffeex2.png"
    write_whole(lr, (tmp_path / "Photos/LR_bicubic/X3/coffeex3.png").read_bytes())
    with pytest.raises(UserError, match=r"coffeex2.png is not 1/2 of .*coffee.png; remove it if it is out of date"):
        prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    lr.unlink()
    write_whole(tmp_path / "Photos/HR/coffee.png", (originals / "chelsea.png").read_bytes())
    with pytest.raises(UserError, match="remove it if it is out of date"):
        prepare("folder", originals, "--name", "Photos", "--root", tmp_path)


def test_originals_of_one_name_from_elsewhere_are_not_mixed(originals, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for path in originals.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(others / path.name)
    root = tmp_path / "Photos"
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path, "--scales", 2)
    with pytest.raises(UserError, match=r"HR/.* is another picture than .*others/.*; remove it if it is out of date"):
        prepare("folder", others, "--name", "Photos", "--root", tmp_path, "--scales", 2, 3)
    assert not (root / "LR_bicubic/X3").exists()
    shutil.rmtree(root / "HR")  # as the message says
    prepare("folder", others, "--name", "Photos", "--root", tmp_path)
    assert_whole(root, others)


def test_read_only_target(originals, tmp_path):
    read_only = Path("/sys") if os.geteuid() == 0 else tmp_path  # a folder's mode does not stop root
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"cannot write .*Photos/HR/.*\.png: "):
        prepare("folder", originals, "--name", "Photos", "--root", read_only)


def test_no_room_leaves_no_half_written_image(originals, tmp_path):
    """A limit on file sizes stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*\.png: File too large"):
            prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.part"))
    for path in tmp_path.rglob("*.png"):
        read_image(path)
    prepare("folder", originals, "--name", "Photos", "--root", tmp_path)
    assert_whole(tmp_path / "Photos", originals)


def test_killed_and_started_again(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        top, left = rng.integers(200, size=2)
        write_whole(tmp_path / f"in/{number}.png", png_bytes(photographs.astronaut()[top:, left:][:300, :300]))
    command = [*DATA, "folder", tmp_path / "in", "--name", "Photos", "--root", tmp_path]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while len(list(tmp_path.glob("Photos/*/*/*.png"))) < 10:
        assert process.poll() is None, "finished before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = list((tmp_path / "Photos").rglob("*.png"))
    assert 10 <= len(written) < 160
    for path in written:
        read_image(path)
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert_whole(tmp_path / "Photos", tmp_path / "in")


def test_help_has_examples_and_errors_are_one_line():
    printed = subprocess.run([*DATA, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "dlgsanet data folder ~/photos --name Mine" in printed
    failed = subprocess.run([*DATA, "folder", "nowhere", "--name", "x"], cwd=REPOSITORY, capture_output=True, text=True)
    assert failed.returncode != 0
    assert failed.stderr.strip().splitlines()[-1].endswith("error: there is no folder or archive nowhere")


def zip_of(path: Path, content: bytes, **changes: int) -> Path:
    """A ZIP file with `a.png`, in which fields of the central directory are changed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", content)
    data = bytearray(path.read_bytes())
    directory = data.find(b"PK\1\2")
    for name, value in changes.items():
        struct.pack_into("<H", data, directory + {"version": 6, "flags": 8, "method": 10}[name], value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("changes", "named"), [
    ({"version": 99}, r"a\.zip: .*version 9\.9"), ({"method": 95}, "skipped: 1"), ({"flags": 1}, "skipped: 1"),
])  # fmt: skip
def test_zip_files_of_later_versions_and_encrypted_ones(tmp_path, changes, named, capsys):
    """A later version of the format, a method of compression that Python lacks, and a password."""
    archive = zip_of(tmp_path / "a.zip", png_bytes(photographs.coffee()), **changes)
    with pytest.raises(UserError, match=named):
        prepare("folder", archive, "--name", "Photos", "--root", tmp_path)
    assert "version" in changes or "a.zip: a.png: " in capsys.readouterr().err
    assert not (tmp_path / "Photos").exists()


def tar_bomb(path: Path, kind: bytes, size: int, count: int = 1) -> Path:
    """A compressed tar archive with `count` members of `size` zeros."""
    with gzip.open(path, "wb", compresslevel=1) as archive:
        for _ in range(count):
            member = tarfile.TarInfo("a.png")
            member.type, member.size = kind, size
            archive.write(member.tobuf(tarfile.GNU_FORMAT))
            for _ in range(size >> 20):
                archive.write(bytes(1 << 20))
        archive.write(bytes(1024))
    return path


def zip_bomb(path: Path) -> Path:
    return zip_of(path, bytes(200 << 20))


@pytest.mark.parametrize("make", [
    zip_bomb,
    lambda path: tar_bomb(path, tarfile.REGTYPE, 400 << 20),
    lambda path: tar_bomb(path, tarfile.GNUTYPE_LONGNAME, 400 << 20),
    lambda path: tar_bomb(path, tarfile.XHDTYPE, 400 << 20),
    lambda path: tar_bomb(path, tarfile.REGTYPE, 0, count=100_000),
], ids=["zip", "tar", "tar, long name", "tar, comment", "tar, members"])  # fmt: skip
def test_archives_that_unpack_to_far_more_than_their_size(tmp_path, make):
    """Refused in one line, in the memory and time that their small size needs."""
    archive = make(tmp_path / "bomb")
    script = (
        "import resource, sys; from dlgsanet.cli import main; import dlgsanet.data.layout\n"
        "room = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (192 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["data", "folder", archive, "--name", "Photos", "--root", tmp_path, "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert all("bomb" in line or "images skipped: 1" in line for line in done.stderr.splitlines()), done.stderr
    assert not (tmp_path / "Photos").exists()


@pytest.mark.parametrize("limit", [16, pytest.param(32, marks=pytest.mark.long)])
def test_few_open_files(originals, tmp_path, limit):
    """More threads are asked for than may have files open at a time."""
    for number in range(40):
        write_whole(tmp_path / f"in/{number}.png", (originals / "coffee.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, path.name)
    root = tmp_path / "Photos"
    for arguments in (
        ["folder", tmp_path / "in", "--name", "Photos", "--root", tmp_path],
        ["folder", tmp_path / "in.zip", "--name", "Zipped", "--root", tmp_path],
        ["subimages", root, "--size", "96", "--step", "48"],
        ["lmdb", root, "--scales", "4"],
        ["meta-info", root / "HR", tmp_path / "meta.txt"],
    ):
        limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *DATA, *arguments, "--workers", "64"]
        done = subprocess.run(limited, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, (arguments, done.stderr)
    assert len(list((tmp_path / "Zipped/HR").iterdir())) == 40
    assert len((tmp_path / "meta.txt").read_text().splitlines()) == 40
