"""`scripts/teacher_targets.py`: what a teacher makes of LR images, to train on."""

import contextlib
import io
import runpy
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.data.layout import RECIPE, hr_path, lr_path
from tests.conftest import REPOSITORY

SCRIPT = str(REPOSITORY / "scripts" / "teacher_targets.py")
WEIGHTS = str(REPOSITORY / "weights" / "DLGSANet_Tiny_x2.safetensors")


@pytest.fixture
def root(tmp_path, monkeypatch, photograph):
    """A data root with two images; the sides of the HR images are odd."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for name, left in (("a", 0), ("b", 60)):
        Image.fromarray(photograph[:49, left : left + 51]).save(tmp_path / "photographs" / f"{name}.png")
    assert main(["data", "folder", "photographs", "--name", "Set", "--scales", "2"]) == 0
    return tmp_path / "datasets" / "Set"


def run(root, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, str(root), "--scale", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def run_here(root, *arguments) -> subprocess.CompletedProcess:
    """The same in this process, which has imported all that the script needs."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [SCRIPT, str(root), "--scale", "2", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
            code = 0
        except SystemExit as stopped:
            code = stopped.code
            if isinstance(code, str):  # as Python ends
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_targets_are_what_upscale_writes(root):
    done = run(root, "--weights", WEIGHTS, "--self-ensemble")
    assert done.stdout.endswith("X2: 2 written, 0 were there\n")
    assert main(["upscale", str(lr_path(root, "b", 2)), "-o", "b.png", "--self-ensemble", "--device", "cpu"]) == 0
    target = pixels(root / "Teacher/X2/b.png")
    assert target.shape == (48, 50, 3)
    np.testing.assert_array_equal(target, pixels("b.png"))

    done = run_here(root, "--weights", WEIGHTS, "--share", "0.25")  # the targets that are there are others
    assert done.returncode == 2
    assert "share 1, self-ensemble, not by weights" in done.stderr
    shutil.rmtree(root / "Teacher")
    assert run_here(root, "--weights", WEIGHTS, "--share", "0.25").stdout.endswith("2 written, 0 were there\n")
    (root / "Teacher/X2/a.png").unlink()
    before = (root / "Teacher/X2/b.png").stat().st_mtime_ns
    assert run_here(root, "--weights", WEIGHTS, "--share", "0.25").stdout.endswith("1 written, 1 were there\n")
    assert (root / "Teacher/X2/b.png").stat().st_mtime_ns == before
    assert main(["upscale", str(lr_path(root, "a", 2)), "-o", "a.png", "--device", "cpu"]) == 0
    mixed = 0.25 * pixels("a.png") + 0.75 * pixels(hr_path(root, "a"))[:48, :50]
    assert np.abs(pixels(root / "Teacher/X2/a.png") - mixed).max() <= 0.625 + 1e-3  # both were rounded


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--weights", "none.pth"], "none.pth"),
        (["--weights", WEIGHTS, "--network", "{type: Nonet}"], "Nonet"),
        (["--weights", WEIGHTS, "--share", "0"], "--share"),
        (["--weights", WEIGHTS.replace("x2", "x3")], "it enlarges by 3"),
    ],
)
def test_wrong_arguments_are_one_line(root, arguments, named):
    done = run_here(root, *arguments)
    assert done.returncode
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (root / "Teacher").exists()


OWN = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class Choosy(nn.Module):
    def __init__(self, wrong="size"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.wrong = wrong

    def forward(self, x):
        y = nn.functional.interpolate(x, scale_factor=2)
        if x.shape[-1] == 16:
            return y
        if self.wrong == "size":
            raise KeyError("of width")
        return y / 0 if self.wrong == "nan" else y[..., :1]
"""


@pytest.mark.parametrize(
    ("wrong", "said"), [("size", "KeyError 'of width'"), ("nan", "not finite"), ("shape", "[1, 3, 48, 1]")]
)
def test_images_that_the_teacher_refuses_are_named(root, wrong, said):
    (root / "own.py").write_text(OWN)
    torch.save({"weight": torch.ones(1)}, root / "teacher.pth")
    choosy = ["--network", f"{{type: Choosy, wrong: {wrong}}}", "--import", str(root / "own.py")]
    done = run_here(root, "--weights", str(root / "teacher.pth"), *choosy)
    assert done.returncode
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert "ax2.png" in line
    assert "bx2.png" in line
    assert said in line
    assert not (root / "Teacher").exists()


def test_errors_of_the_file_system_are_one_line(root):
    (root / "Teacher/X2" / RECIPE).mkdir(parents=True)
    done = run_here(root, "--weights", WEIGHTS)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"{RECIPE}: Is a directory")
