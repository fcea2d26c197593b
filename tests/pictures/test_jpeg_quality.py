"""The quality of JPEG files, and the weights that `dlgsanet upscale` suggests for them."""

import shutil

import pytest
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.inference import weights as places
from dlgsanet.pictures.reading import read_picture


@pytest.mark.parametrize("quality", [1, 5, 10, 30, 49, 50, 51, 70, 85, 90, 95, 100])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quality_is_read(photo, tmp_path, quality, mode):
    Image.fromarray(photo).convert(mode).save(tmp_path / "a.jpg", quality=quality)
    assert read_picture(tmp_path / "a.jpg").jpeg_quality == quality


def test_other_files_have_none(photo, tmp_path):
    for name in ("a.png", "a.webp", "a.tif"):
        Image.fromarray(photo).save(tmp_path / name)
        assert read_picture(tmp_path / name).jpeg_quality is None


@pytest.fixture
def included(weights, tmp_path, monkeypatch):
    """A folder of included weights: Tiny x2, and the same for compressed photographs."""
    folder = tmp_path / "included"
    folder.mkdir()
    for name in ("DLGSANet_Tiny_x2", "DLGSANet_Tiny_x2_jpeg"):
        shutil.copy(weights, folder / f"{name}.safetensors")
    monkeypatch.setattr(places, "FOLDERS", (folder,))
    return folder


def last_line(folder, capsys, *arguments):
    assert main(["upscale", str(folder / "in"), "-o", str(folder / "out"), "--overwrite", *map(str, arguments)]) == 0
    return capsys.readouterr().err.splitlines()[-1]


def test_they_are_suggested_and_never_chosen(included, weights, photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for quality in (40, 70, 95):
        Image.fromarray(photo).save(tmp_path / f"in/{quality}.jpg", quality=quality)
    line = last_line(tmp_path, capsys)
    assert "2 JPEGs" in line
    assert "40 to 70" in line
    assert "(--weights Tiny_jpeg)" in line
    for given in ("DLGSANet_Tiny_x2", included / "DLGSANet_Tiny_x2.safetensors"):
        assert "(--weights DLGSANet_Tiny_x2_jpeg)" in last_line(tmp_path, capsys, "--weights", given)
    assert "jpeg" in last_line(tmp_path, capsys, "--dry-run")
    assert last_line(tmp_path, capsys, "--device", "cpu,cpu") == line
    for other in ("Tiny_jpeg", "DLGSANet_Tiny_x2_jpeg", weights):  # in use already, or not the included ones
        assert "(--weights" not in last_line(tmp_path, capsys, "--weights", other)
    (included / "DLGSANet_Tiny_x2_jpeg.safetensors").unlink()
    assert "(--weights" not in last_line(tmp_path, capsys)


def test_names_of_weights(included):
    jpeg, plain = (included / f"DLGSANet_Tiny_x2{end}.safetensors" for end in ("_jpeg", ""))
    assert places.families() == {"Tiny": {2: plain}, "Tiny_jpeg": {2: jpeg}}
    assert places.find_weights("tiny_JPEG", 2) == jpeg
    assert places.find_weights("Tiny") == plain
