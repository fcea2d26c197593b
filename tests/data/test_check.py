"""`dlgsanet data check`: that a sound data root passes, and that each kind of fault is found, all at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data as photographs

from dlgsanet.commands.data import main
from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.layout import lay_out
from dlgsanet.data.sources import images_of
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from tests.conftest import REPOSITORY


def check(*arguments) -> None:
    assert main(["check", *map(str, arguments)]) == 0


@pytest.fixture
def root(photo_root, tmp_path) -> Path:
    """A copy to do damage to."""
    return Path(shutil.copytree(photo_root, tmp_path / "Photos"))


def test_a_sound_root(photo_root, capsys):
    check(photo_root)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("Photos: 3 originals, 151x150 to 150x200")
    assert [line.split(",")[0] for line in printed[1:]] == [f"  x{scale}: 3 pairs" for scale in (2, 3, 4)]


def test_all_faults_are_listed_at_once(root, capsys):
    hr, x2, x4 = root / "HR", root / "LR_bicubic/X2", root / "LR_bicubic/X4"
    (hr / "astronaut.png").write_bytes((hr / "astronaut.png").read_bytes()[:9000])
    Image.open(hr / "chelsea.png").convert("RGB").save(hr / "chelsea.png", format="JPEG")
    shutil.copy(hr / "coffee.png", hr / "copy.png")
    (x2 / "coffeex2.png").unlink()
    shutil.copy(root / "LR_bicubic/X3/coffeex3.png", x4 / "coffeex4.png")
    (root / "LR_bicubic/X3/coffeex3.png").write_bytes(b"")
    shutil.copy(x2 / "astronautx2.png", x2 / "strangerx2.png")
    with pytest.raises(UserError, match="faults: 13, listed above"):
        check(root)
    printed = capsys.readouterr().err
    for fault in (
        "HR/astronaut.png: damaged or cut off",
        "HR/chelsea.png: holds JPEG, its name says otherwise",
        "X2/chelseax2.png: not MATLAB's bicubic of",
        "X2/coffeex2.png: there is no such file",
        "X3/coffeex3.png: the file is empty",
        "X4/coffeex4.png: 50x66 pixels are not 1/4 of 150x200 of",
        "X2/strangerx2.png: has no original",
        "X2/copyx2.png: there is no such file",
        "HR/coffee.png and",
    ):
        assert fault in printed


def test_what_is_wrong_with_a_picture_is_said_as_the_reader_says_it(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((9, 9), np.float32))
    tifffile.imwrite(
        tmp_path / "bands.tif", np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(UserError, match="faults: 2"):
        check(tmp_path)
    out, err = capsys.readouterr()
    assert "0x0" not in out
    for path in tmp_path.iterdir():
        with pytest.raises(UserError) as caught:
            read_image(path)
        assert str(caught.value) in err
    assert "not an image" not in err


def test_an_lr_image_by_another_rule_is_found(root, capsys):
    lr = root / "LR_bicubic/X4/coffeex4.png"
    pillows = Image.open(root / "HR/coffee.png").resize((37, 50), Image.Resampling.BICUBIC, box=(0, 0, 148, 200))
    difference = np.abs(np.asarray(pillows).astype(int) - read_image(lr))
    assert difference[4:-4, 4:-4].max() <= 2  # nothing that an eye would see
    pillows.save(lr)
    with pytest.raises(UserError, match="faults: 1, listed above"):
        check(root)
    assert "coffeex4.png: not MATLAB's bicubic of" in capsys.readouterr().err


def test_odd_images_are_noted(tmp_path, capsys):
    coffee = Image.fromarray(photographs.coffee()[:100, :100])
    coffee.convert("L").save(tmp_path / "gray.png")
    coffee.quantize(64).save(tmp_path / "palette.png")
    coffee.convert("RGBA").save(tmp_path / "opaque.png")
    check(tmp_path)
    printed = capsys.readouterr().out
    assert "note: " in printed
    assert all(("note: " in line) == (".png: " in line) for line in printed.splitlines())
    assert "gray.png: gray" in printed
    assert "palette.png: has a palette" in printed
    assert "opaque.png: has RGBA pixels" in printed


def test_gray_images_are_read_both_ways(originals, tmp_path, capsys):
    Image.open(originals / "coffee.png").convert("L").save(tmp_path / "gray.png")
    root = lay_out(images_of(tmp_path), tmp_path / "Gray", [2]).root
    check(root)
    printed = capsys.readouterr().out
    three_channels, one_channel = (
        float(printed.split(f"{word} ")[1].split(" dB")[0]) for word in ("bicubic", "3 channels,")
    )
    # Luma has 219 levels for the 255 of gray: 20 log10(255 / 219) dB.
    assert three_channels - one_channel == pytest.approx(1.32, abs=0.02)


def test_a_training_image_that_is_in_a_test_set(photo_root, tmp_path, capsys):
    """Shrunk, cropped by 2%, mirrored and compressed; and one that is of another subject."""
    chelsea = Image.open(photo_root / "HR/chelsea.png").crop((2, 1, 150, 149))
    chelsea.resize((105, 105)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "train.jpg", quality=75)
    Image.fromarray(photographs.rocket()).save(tmp_path / "other.jpg")
    with pytest.raises(UserError, match="faults: 1, listed above"):
        check(tmp_path, "--against", photo_root)
    fault = capsys.readouterr().err
    assert "train.jpg and" in fault
    assert "HR/chelsea.png are the same picture" in fault


def test_even_images_are_not_all_alike(tmp_path):
    write_whole(tmp_path / "black/a.png", png_bytes(np.zeros((64, 64, 3), np.uint8)))
    write_whole(tmp_path / "white/a.png", png_bytes(np.full((64, 64, 3), 255, np.uint8)))
    check(tmp_path / "black", "--against", tmp_path / "white")


@pytest.mark.parametrize(("name", "message"), [("nowhere", "ROOT: there is no folder"), ("", "ROOT: no images in")])
def test_no_images(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check(tmp_path / name)


@pytest.mark.skipif("DLGSANET_SHARED" not in os.environ, reason="DLGSANET_SHARED is not set")
def test_the_benchmarks(capsys):
    """Sound, with the published figures; `face` of Set14 is `head` of Set5."""
    benchmark = Path(os.environ["DLGSANET_SHARED"], "data", "benchmark")
    with pytest.raises(UserError, match="faults: 1, listed above"):
        check(benchmark / "Set14", "--against", benchmark / "Set5")
    printed = capsys.readouterr()
    assert "x4: 5 pairs, bicubic 28.43 dB (published: 28.42)" in printed.out
    assert "bicubic 26.09 dB read as 3 channels, 25.99 dB with gray images read as 1 (published: 26.00)" in printed.out
    assert "face.png and" in printed.err


def test_pipes_are_left_out(root, capsys):
    """Reading one would never end."""
    check(root)
    expected = capsys.readouterr().out
    os.mkfifo(root / "HR/pipe.png")
    (root / "HR/linked.png").symlink_to("pipe.png")
    check(root)
    assert capsys.readouterr().out == expected


def test_several_roots(photo_root, root, tmp_path, capsys):
    """Every root is reported, with its faults, and those that are not there; `--against` holds for all of them."""
    (root / "LR_bicubic/X2/coffeex2.png").unlink()
    (tmp_path / "Train").mkdir()
    shutil.copy(root / "HR/chelsea.png", tmp_path / "Train")
    with pytest.raises(UserError, match="faults: 4, listed above"):
        check(photo_root, root, tmp_path / "nowhere", "--against", tmp_path / "Train")
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if " original" in line] == [
        f"{folder}: 3 originals, 151x150 to 150x200" for folder in (photo_root, root)
    ] + [f"{tmp_path / 'Train'}: 1 original, 151x150 to 151x150"]
    assert "x2: 2 pairs" in out
    assert f"there is no folder {tmp_path / 'nowhere'}" in err
    assert "X2/coffeex2.png: there is no such file" in err
    assert sum("Train/chelsea.png" in line for line in err.splitlines()) == 2


def test_names_that_are_not_utf8_are_printed(root, tmp_path):
    """In a UTF-8 locale, which has no character for them, and in one that has ASCII alone."""
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.rename(root, odd)
    os.rename(odd + b"/HR/coffee.png", odd + b"/HR/th\xe9.png")
    for encoding in ("utf-8:strict", "ascii:strict"):
        command = [sys.executable, "-m", "dlgsanet", "data", "check", odd]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert "caf\\xe9: 3 originals" in done.stdout
        assert "caf\\xe9/LR_bicubic/X2/th\\xe9x2.png: there is no such file" in done.stderr
        assert done.stderr.splitlines()[-1] == "dlgsanet: error: faults: 6, listed above"
