"""`scripts/evaluate_compressed.py`: scores of compressed pictures, and the crops to look at."""

import csv
import io
import statistics
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dlgsanet.evaluation.scoring import bicubic
from dlgsanet.metrics import psnr
from tests.conftest import run_script
from tests.evaluation.conftest import small_weights, write_set


def test_scores_of_compressed_pictures(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path, "Photos")
    small = small_weights(tmp_path / "small.pth")
    run = partial(run_script, monkeypatch, "evaluate_compressed")
    assert run(small, "--scale", 2, "--data", root, "-o", small / "out") == 2
    assert "quality" not in (err := capsys.readouterr().err)  # it is found before the work
    assert "cannot write" in err
    output = tmp_path / "out"
    assert run(f"ours={small}", small, "--scale", 2, "--data", root, "--qualities", 50, 20, "-o", output) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((output / "x2.csv").read_text())))
    assert len(rows) == 3 * 3 * 3  # qualities and none, images, methods
    for quality in (20, 50, "none"):  # as a reader would compute it
        expected = []
        for original in sorted((root / "HR").iterdir()):
            lr, content = Image.open(root / f"LR_bicubic/X2/{original.stem}x2.png"), io.BytesIO()
            if quality != "none":
                lr.save(content, "JPEG", quality=quality)
                lr = Image.open(content)
            made = bicubic(np.asarray(lr.convert("RGB")), 2)
            expected.append(psnr(made, np.asarray(Image.open(original))[: len(made), : made.shape[1]], 2))
        found = [float(row["psnr"]) for row in rows if (row["quality"], row["method"]) == (str(quality), "bicubic")]
        assert sorted(found) == pytest.approx(sorted(expected))
        assert f"{statistics.fmean(expected):.2f} / " in printed
    table = (output / "x2.md").read_text().splitlines()
    assert table[0].count("|") == 5
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["20", "50", "not compressed"]
    ours, same = ([row["psnr"] for row in rows if row["method"] == name] for name in ("ours", "small"))
    assert ours == same
    assert Image.open(output / "x2.png").height > 9 * 90


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("none.pth", "--scale", 2), "none.pth"),
        (("Tiny", "--scale", 2, "--qualities", 0), "--qualities"),
        (("Tiny", "--scale", 2, "--pictures", 0), "--pictures"),
        (("Tiny", "--scale", 7), "x7"),
        (("Tiny", "other/Tiny", "--scale", 2), "two methods are called 'Tiny'"),
        (("bicubic=Tiny", "--scale", 2), "two methods are called 'bicubic'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, capsys, arguments, named):
    assert run_script(monkeypatch, "evaluate_compressed", *arguments, "--data", tmp_path) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
