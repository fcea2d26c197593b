"""`dlgsanet figure`, and the choice of the crop."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dlgsanet.cli import main
from dlgsanet.evaluation.crops import Crop, best_crop
from tests.evaluation.conftest import small_weights, write_set


def test_the_crop_is_where_the_methods_differ():
    original = data.astronaut()[:240, :320]
    near, far = original.copy(), original.copy()
    near[10:40, 20:50] = 0  # both are wrong here in the same way
    far[10:40, 20:50] = 0
    far[150:180, 220:260] //= 2
    crop = best_crop([near, far], original, scale=4, side=64)
    assert crop.x <= 220
    assert crop.y <= 150
    assert crop.x + crop.side >= 260
    assert crop.y + crop.side >= 180
    assert (crop.x % 4, crop.y % 4, crop.side) == (0, 0, 64)


def test_the_crop_fits_into_a_small_picture():
    original = data.astronaut()[:33, :42]
    crop = best_crop([original // 2], original, scale=3)
    assert crop.side == 33
    assert crop.of(original).shape == (33, 33, 3)


@pytest.fixture
def finished(tmp_path, photographs, monkeypatch):
    """A benchmark of one network on `Photos` at x2."""
    monkeypatch.chdir(tmp_path)
    small_weights(tmp_path / "A.pth")
    assert main(["benchmark", "A.pth", "--data", "datasets/Photos", "--runs", "0"]) == 0
    return tmp_path


def test_writes_pdf_and_png(finished):
    assert main(["figure", "Photos/chelsea", "Photos/coffee", "--scale", "2", "-o", "comparison.png"]) == 0
    assert (finished / "comparison.pdf").read_bytes().startswith(b"%PDF")
    image = np.array(Image.open(finished / "comparison.png").convert("RGB")).astype(int)
    assert image.shape[1] == pytest.approx(7.16 * 300, abs=2)
    colours = image.reshape(-1, 3)
    assert (np.abs(colours - (232, 178, 0)).max(1) < 6).sum() > 200  # the rectangle
    assert 0.02 < (colours.min(1) > 250).mean() < 0.7  # neither blank nor without margins


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["chelsea"], "SET/IMAGE"),
        (["Photos/nobody"], "nobody of Photos"),
        (["Photos/chelsea", "--methods", "Z"], "--methods: unknown method 'Z'"),
        (["Photos/chelsea", "--crop", "40", "40", "40"], "--crop: "),
        (["Photos/chelsea", "--crop", "1", "0", "16"], "--crop: 1 0 16"),
        (["Photos/chelsea", "--results", "nowhere"], "nowhere"),
        (["Photos/chelsea", "--results", "nowhere", "-o", "n" * 260], "nnn.pdf"),
    ],
)
def test_errors_name_the_argument(finished, arguments, named, capsys):
    assert main(["figure", "--scale", "2", "-o", "none", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert not list(finished.glob("none*"))


def test_a_crop_of_the_original():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert (Crop(4, 2, 2).of(image) == image[2:4, 4:6]).all()
    assert (Crop(4, 2, 2).of(image, 2) == image[1:2, 2:3]).all()


def test_test_sets_are_read_from_where_the_benchmark_read_them(tmp_path, photographs, monkeypatch, capsys):
    """Without --data-root, and from another folder than the benchmark."""
    photographs.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    small_weights(tmp_path / "A.pth")
    assert main(["benchmark", "A.pth", "--data", "elsewhere/Photos", "--runs", "0"]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    arguments = ["figure", "Photos/chelsea", "--scale", "2", "--results", "../results/benchmark"]
    assert main(arguments) == 0
    assert Image.open("figure.png").size[0] > 2000
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert main(arguments) == 2
    assert str(tmp_path / "elsewhere/Photos") in capsys.readouterr().err
    assert main([*arguments, "--data-root", "../moved"]) == 0


@pytest.mark.parametrize("content", ["[]", '{"images": [1]}', '{"images": [{"data set": "A", "image": "b"}]}', "{"])
def test_a_damaged_file_of_results_is_named(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x2.json").write_text(content)
    assert main(["figure", "A/b", "--scale", "2", "--results", "."]) == 2
    assert "x2.json: not a benchmark's results" in capsys.readouterr().err


def test_a_very_wide_picture(tmp_path, monkeypatch):
    """The whole picture leaves room for its crops."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, "Wide", size=(24, 440))
    small_weights(tmp_path / "A.pth")
    assert main(["benchmark", "A.pth", "--data", "Wide", "--runs", "0"]) == 0
    assert main(["figure", "Wide/coffee", "--scale", "2"]) == 0
    width, height = Image.open("figure.png").size
    assert 0.5 * 300 < height < width
