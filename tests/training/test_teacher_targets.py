"""`scripts/teacher_targets.py`: what a teacher makes of LR images, to train on."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dlgsanet.cli import main
from dlgsanet.data.layout import RECIPE, hr_path, lr_path
from tests.conftest import REPOSITORY, run_script

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


@pytest.fixture
def run(root, monkeypatch, capsys):
    """Run the script: its exit code, the end of what it printed, and the last line of its errors."""

    def run(*arguments):
        capsys.readouterr()
        code = run_script(monkeypatch, "teacher_targets", root, "--scale", "2", *arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out.rpartition("X2: ")[2], said.err.splitlines()[-1:]

    return run


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_targets_are_what_upscale_writes(root, run):
    assert run("--weights", WEIGHTS, "--self-ensemble")[:2] == (0, "2 written, 0 were there\n")
    assert main(["upscale", str(lr_path(root, "b", 2)), "-o", "b.png", "--self-ensemble", "--device", "cpu"]) == 0
    target = pixels(root / "Teacher/X2/b.png")
    assert target.shape == (48, 50, 3)
    np.testing.assert_array_equal(target, pixels("b.png"))

    code, _, (line,) = run("--weights", WEIGHTS, "--share", "0.25")  # the targets that are there are others
    assert code == 2
    assert "share 1, self-ensemble, not by weights" in line
    shutil.rmtree(root / "Teacher")
    assert run("--weights", WEIGHTS, "--share", "0.25")[:2] == (0, "2 written, 0 were there\n")
    (root / "Teacher/X2/a.png").unlink()
    before = (root / "Teacher/X2/b.png").stat().st_mtime_ns
    assert run("--weights", WEIGHTS, "--share", "0.25")[:2] == (0, "1 written, 1 were there\n")
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
def test_wrong_arguments_are_one_line(root, run, arguments, named):
    code, _, (line,) = run(*arguments)
    assert code == 2
    assert named in line
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
def test_images_that_the_teacher_refuses_are_named(root, run, wrong, said):
    (root / "own.py").write_text(OWN)
    torch.save({"weight": torch.ones(1)}, root / "teacher.pth")
    choosy = ["--network", f"{{type: Choosy, wrong: {wrong}}}", "--import", str(root / "own.py")]
    code, _, (line,) = run("--weights", str(root / "teacher.pth"), *choosy)
    assert code == 2
    assert "ax2.png" in line
    assert "bx2.png" in line
    assert said in line
    assert not (root / "Teacher").exists()


def test_errors_of_the_file_system_are_one_line(root, run):
    (root / "Teacher/X2" / RECIPE).mkdir(parents=True)
    code, _, (line,) = run("--weights", WEIGHTS)
    assert code == 2
    assert line.endswith(f"{RECIPE}: Is a directory")
