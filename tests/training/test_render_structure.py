"""`scripts/render_structure.py`: pictures by seed, and a data root that is trained on next to photographs."""

import subprocess
import sys

import numpy as np
import pytest

from dlgsanet.cli import main
from dlgsanet.data.images import read_image
from tests.conftest import REPOSITORY


def render(folder, *arguments: str) -> dict[str, np.ndarray]:
    script = REPOSITORY / "scripts/render_structure.py"
    subprocess.run([sys.executable, script, folder, "--size", "48", "64", *arguments], check=True, cwd=REPOSITORY)
    return {path.name: read_image(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render(tmp_path_factory.mktemp("rendered") / "structure", "--count", "4", "--seed", "7")


def test_a_picture_is_a_function_of_seed_and_number(rendered, tmp_path):
    fewer, others = render(tmp_path / "a", "--count", "2", "--seed", "7"), render(tmp_path / "b", "--count", "2")
    for name, picture in fewer.items():
        assert (picture == rendered[name]).all()
        assert (picture != others[name]).any()


def test_pictures_have_the_size_and_something_to_see(rendered):
    assert len(rendered) == 4
    for picture in rendered.values():
        assert picture.shape == (48, 64, 3)
        gray = picture.mean(2)
        edges = np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean()
        assert edges > 2  # of 255; a plain area has less
    first, *others = rendered.values()
    assert all((first != other).any() for other in others)


def test_it_is_a_second_data_root_with_a_share(workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    render(workplace.folder / "structure", "--count", "3")
    assert main(["data", "folder", "structure", "--name", "Structure", "--scales", "2"]) == 0
    train = workplace.options["datasets"]["train"]
    train["dataroot_gt"] = ["train/HR", "datasets/Structure/HR"]
    train["dataroot_lq"] = ["train/X2", "datasets/Structure/LR_bicubic/X2"]
    train |= {"shares": [0.5, 0.5], "batch_size_per_gpu": 3}
    workplace.options["train"]["total_iter"] = 2
    assert "6 samples" in workplace.train()
    assert workplace.weights(2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--size", "0", "8"], "--size"), (["--seed", "-1"], "--seed"), (["--count", "-1"], "--count"), ([], "notes.txt")],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, named):
    (tmp_path / "notes.txt").write_text("")
    small = ["--count", "1", "--size", "8", "8", *arguments]
    script = str(REPOSITORY / "scripts" / "render_structure.py")
    command = [sys.executable, script, str(tmp_path / "notes.txt"), *small]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode
    assert named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
