"""`scripts/make_weights.py` with the real recipes, made small: from nothing to the released files."""

import csv
import os
import runpy
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dlgsanet.archs.checkpoint import build_network, read_checkpoint
from dlgsanet.cli import main
from dlgsanet.errors import UserError
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import small_weights
from tests.training.conftest import OPTIONS, identical

SCRIPT = REPOSITORY / "scripts/make_weights.py"
NAME = "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx{}_constant_img_size_64_lr1e_3"


def recipe(workplace, scale: int, total_iter: int) -> dict:
    """Write a recipe with a small network and few iterations where the script looks for it."""
    options = yaml.safe_load((REPOSITORY / f"options/train/{NAME.format(scale)}.yml").read_text())
    options["network_g"] = dict(OPTIONS["network_g"]) | {"upscale": scale}
    options["train"]["total_iter"] = total_iter
    options["datasets"]["train"] |= {"gt_size": 12 * scale, "patches_per_image": 4}
    options["val"]["val_freq"] = 2
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 2}
    file = workplace.folder / f"options/train/{NAME.format(scale)}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(options))
    return options


def make(workplace, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, SCRIPT, "--photos", "train/HR", "--valid", "val/HR", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=workplace.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr


def released(workplace, scale: int):
    """The weights file, the rows of the CSV, and the size of the picture of the curves."""
    name = f"DLGSANet_Tiny_x{scale}"
    checkpoint = read_checkpoint(workplace.folder / f"weights/{name}.safetensors")
    with open(workplace.folder / f"docs/training/{name}.csv") as file:
        rows = list(csv.DictReader(file))
    with Image.open(workplace.folder / f"docs/training/{name}.png") as picture:
        return checkpoint, rows, picture.size


def test_weights_are_made_from_nothing_by_one_command(workplace, monkeypatch):
    recipe(workplace, 2, total_iter=4)
    make(workplace, "--scales", "2", "--decay", "2")
    checkpoint, rows, size = released(workplace, 2)
    branch = f"{NAME.format(2)}_decay_4"
    with_loss = [(row["stage"], int(row["iteration"])) for row in rows if row["l_pix"]]
    assert with_loss == [(NAME.format(2), i) for i in (1, 2, 3, 4)] + [(branch, i) for i in (5, 6)]
    assert {row["stage"] for row in rows if row["psnr"]} == {NAME.format(2), branch}
    assert size[0] > 500
    metadata = checkpoint.metadata
    assert metadata["scale"] == "2"
    assert metadata["training"].startswith(
        "started as a linear filter; then 6 iterations of 4 LR patches of 12x12, Muon"
    )
    assert metadata["hours"] == rows[-1]["hours"]
    assert f"{float(rows[-1]['psnr']):.2f} dB" in metadata["figures"]
    averages = workplace.weights(6, branch)["params_ema"]
    assert all((averages[name] == value).all() for name, value in checkpoint.state.items())
    assert build_network(checkpoint).upscale == 2
    monkeypatch.chdir(workplace.folder)
    assert (
        main(["upscale", "val/HR/crop0.png", "--weights", "weights/DLGSANet_Tiny_x2.safetensors", "-o", "a.png"]) == 0
    )


def test_a_run_starts_from_the_weights_that_are_named(tmp_path, monkeypatch):
    """Whatever is left of an earlier run. One that has begun continues from its own start alone."""
    script = runpy.run_path(str(SCRIPT))
    copy_of_start = script["copy_of_start"]
    monkeypatch.chdir(tmp_path)
    starts = [small_weights(Path(f"{seed}.safetensors"), seed=seed) for seed in (1, 2)]

    def state(path):
        return identical(read_checkpoint(path).state, read_checkpoint(starts[1]).state)

    assert not state(copy_of_start(2, starts[0]))
    assert state(copy_of_start(2, starts[1]))
    run = Path("experiments", NAME.format(2))
    (run / "training_states").mkdir(parents=True)
    (run / "training_states/2.state").touch()
    starts[1].write_bytes(starts[0].read_bytes())  # as a release overwrites it
    before = copy_of_start(2, tmp_path / starts[1])
    starts[1].write_bytes(before.read_bytes())
    assert state(before)
    with pytest.raises(UserError, match=r"began from 2\.safetensors, not from 1\.safetensors"):
        copy_of_start(2, starts[0])
    before.unlink()
    assert copy_of_start(2, None) is None
    with pytest.raises(UserError, match="began from no weights"):
        copy_of_start(2, starts[0])


def test_ctrl_c_lets_a_training_save(tmp_path):
    """The terminal sends it to the script and to the training, which may take a while to save."""
    training = tmp_path / "training"  # in place of Python, with the arguments of a training
    saves = "os.killpg(0, signal.SIGINT); time.sleep(1); open('saved', 'w'); os._exit(130)"
    training.write_text(
        f"#!{sys.executable}\nimport os, signal, time\nsignal.signal(signal.SIGINT, lambda *_: None)\n{saves}\n"
    )
    training.chmod(0o755)
    call = f"import runpy, sys; sys.executable = './training'; runpy.run_path({str(SCRIPT)!r})['dlgsanet']('train')"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=environment, start_new_session=True)
    assert done.returncode == 130
    assert (tmp_path / "saved").exists()


@pytest.mark.long
def test_now_releases_what_an_unfinished_run_has_and_later_releases_know_the_same_start(workplace):
    """x3 starts from a file, as all its releases say, though the file changes in between."""
    recipe(workplace, 2, total_iter=2)
    make(workplace, "--scales", "2", "--decay", "2")
    first = released(workplace, 2)[0]
    workplace.options = recipe(workplace, 2, total_iter=100)
    workplace.options["name"] = NAME.format(2)
    start = "weights/DLGSANet_Tiny_x2.safetensors"
    assert "--from" in make(workplace, "--from", start, code=2)  # three scales
    for path in workplace.folder.glob("experiments/*"):
        path.rename(workplace.folder / path.name)  # another checkout, which has nothing but the weights
    again = ["--scales", "2", "--decay", "2", "--from", start]
    copy = f"experiments/{NAME.format(2)}_start.safetensors"
    changes = [f"path:pretrain_network_g={start}", "train:network_init=random"]
    workplace.start("--force-yml", *changes, stop=(2, signal.SIGTERM)).end(75)
    make(workplace, *again, "--now")
    second, rows, _ = released(workplace, 2)
    assert second.metadata["training"].startswith(first.metadata["training"] + "; then 4 iterations")
    assert read_checkpoint(workplace.folder / copy).metadata == first.metadata | {"copy_of": start}
    run, branch = NAME.format(2), f"{NAME.format(2)}_decay_2"
    assert [stage for stage, _ in groupby(row["stage"] for row in rows)] == [run, branch] * 2
    workplace.start("--auto-resume", "--force-yml", *changes, stop=(4, signal.SIGTERM)).end(75)
    make(workplace, *again, "--now")  # START is now what was released a moment ago
    third, rows, _ = released(workplace, 2)
    assert third.metadata["training"].startswith(first.metadata["training"] + "; then 6 iterations")
    assert rows[-1]["iteration"] == "6"
    assert [stage for stage, _ in groupby(row["stage"] for row in rows)] == [run, branch, run, f"{run}_decay_4"]


@pytest.mark.long
def test_other_scales_start_from_the_weights_of_x2(workplace):
    for scale in (2, 3):
        recipe(workplace, scale, total_iter=2)
    make(workplace, "--scales", "2", "3", "--decay", "2")
    checkpoint, rows, _ = released(workplace, 3)
    assert checkpoint.metadata["training"].startswith("the body of weights of x2 (started as a linear filter; then 4")
    assert {row["stage"] for row in rows} == {NAME.format(3), f"{NAME.format(3)}_decay_2"}
    assert build_network(checkpoint).upscale == 3
