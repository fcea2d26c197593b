"""Checkpoints are whole or do not count; a damaged one is named and the one before it used; a full disk loses none."""

import re
import resource
import shutil
import subprocess

import cv2
import pytest

from dlgsanet import load_model
from dlgsanet.cli import run
from dlgsanet.training.checkpoints import Checkpoints
from tests.training.conftest import identical, resumed

LATEST = "net_g_latest.safetensors"


def damage(path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] if how == "truncated" else content[:middle] + b"!!" + content[middle + 2 :])


@pytest.mark.parametrize("how", ["truncated", "changed"])
@pytest.mark.parametrize("name", ["models/net_g_12.pth", "training_states/12.state"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, name, how):
    damage(trained.experiment() / name, how)
    said = trained.train("--auto_resume")
    assert name in said
    assert resumed(said) == (10, True)


def test_without_a_whole_checkpoint_nothing_begins_anew_in_silence(trained):
    for path in trained.experiment().glob("training_states/*.state"):
        damage(path, "truncated")
    said = trained.train("--auto_resume", code=2)
    last = said.splitlines()[-1]
    assert last.startswith("dlgsanet: error: ")
    assert "12.state" in last
    assert "--auto-resume" in last


def test_last_few_the_best_and_the_latest_are_kept_and_their_checksums_hold(workplace):
    workplace.options["logger"]["keep_last"] = 2
    workplace.train()
    models = {path.name for path in (workplace.experiment() / "models").iterdir()}
    assert models == {"net_g_10.pth", "net_g_12.pth", "net_g_best.pth", "net_g_latest.pth"}
    states = {path.name for path in (workplace.experiment() / "training_states").iterdir()}
    assert states == {"10.state", "10.sha256", "12.state", "12.sha256"}
    subprocess.run(["sha256sum", "-c", "training_states/12.sha256"], cwd=workplace.experiment(), check=True)


def test_checkpoint_that_cannot_be_written_leaves_the_last_good_one(workplace):
    """Here it is larger than a file may be; a full disk is the same error to a program."""
    workplace.options["train"]["total_iter"] = 4
    workplace.train()
    before = {path: path.read_bytes() for path in workplace.experiment().rglob("*_4.pth")}
    workplace.options["train"]["total_iter"] = 100_000
    started = workplace.start("--auto_resume")
    started.wait_for(" 5/")
    size = (workplace.experiment() / "models/net_g_4.pth").stat().st_size
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (size - 1, size - 1))
    last = started.end(2).splitlines()[-1]
    failed = re.search(r"net_g_(\d+).pth", last)[1]
    good = int(failed) - 2
    assert f"{good}.state; --auto-resume" in last
    assert not list(workplace.experiment().rglob("*.part"))
    assert not list(workplace.experiment().glob(f"models/*_{failed}.*"))
    assert not list(workplace.experiment().glob(f"training_states/{failed}.*"))
    assert all(path.read_bytes() == content for path, content in before.items() if good == 4)
    workplace.options["train"]["total_iter"] = good + 1
    assert resumed(workplace.train("--auto_resume")) == (good, True)


DAMAGED_SUMS = {
    "truncated": lambda content: content[:-30],
    "cut after a line": lambda content: content.splitlines(keepends=True)[0],
    "empty": lambda content: b"",
    "high bit": lambda content: bytes([content[0] | 128]) + content[1:],
    "of another file": lambda content: content.replace(b"_12.pth", b"_10.pth"),
}


@pytest.mark.parametrize("how", DAMAGED_SUMS)
def test_damaged_checksums_are_a_damaged_checkpoint(trained, how):
    path = trained.experiment() / "training_states/12.sha256"
    path.write_bytes(DAMAGED_SUMS[how](path.read_bytes()))
    assert Checkpoints(trained.experiment()).newest().iteration == 10


@pytest.mark.parametrize("gone", [["net_g_12.pth"], ["net_g_12.pth", "12.sha256"]], ids=["weights", "and checksums"])
def test_missing_weights_are_named_and_the_checkpoint_before_used(trained, gone):
    for name in gone:
        next(trained.experiment().rglob(name)).unlink()
    said = trained.train("--auto_resume")
    assert "net_g_12.pth" in said
    assert resumed(said) == (10, True)


@pytest.mark.parametrize(
    "name", ["\N{SUPERSCRIPT TWO}.state", "\N{ARABIC-INDIC DIGIT TWO}.state", "02.state", "x.state"]
)
def test_other_names_are_no_checkpoints(trained, name):
    path = trained.experiment() / "training_states" / name
    path.write_bytes(b"")
    checkpoints = Checkpoints(trained.experiment())
    assert checkpoints.iterations() == [8, 10, 12]
    trained.options["path"]["resume_state"] = str(path.relative_to(trained.folder))
    assert "path.resume_state" in trained.fault()


def test_orphans_of_interrupted_writing_and_deletion_go_and_what_the_user_keeps_stays(trained):
    states, models = trained.experiment() / "training_states", trained.experiment() / "models"
    for iteration in (7, 9, 11):
        shutil.copy(models / "net_g_12.pth", models / f"net_g_{iteration}.pth")
    for iteration in (7, 9):
        (states / f"{iteration}.sha256").touch()  # was begun, or was not deleted to the end
    (states / "9.state.aside").touch()
    checkpoints = Checkpoints(trained.experiment(), keep_last=2)
    newest = checkpoints.newest()
    checkpoints.save(13, newest.weights, newest.state)
    assert {path.name for path in models.glob("net_g_*[0-9].pth")} == {f"net_g_{i}.pth" for i in (9, 11, 12, 13)}
    kept = {f"{i}.{kind}" for i in (12, 13) for kind in ("state", "sha256")} | {"9.sha256", "9.state.aside"}
    assert {path.name for path in states.iterdir()} == kept


def test_safetensors_of_a_run_are_loaded_at_once(workplace):
    workplace.options["logger"] |= {"save_safetensors": True, "keep_last": 2}
    workplace.train()
    models = workplace.experiment() / "models"
    names = {path.stem for path in models.glob("*.safetensors")}
    assert names == {"net_g_10", "net_g_12", "net_g_best", "net_g_latest"}
    network = load_model(models / LATEST)
    weights = workplace.weights("latest")["params_ema"]
    assert identical(dict(network.state_dict()), weights)
    picture, made = workplace.folder / "train/X2/coffeex2.png", workplace.folder / "made.png"
    assert (
        run("dlgsanet.commands.upscale:main", [str(picture), "-o", str(made), "--weights", str(models / LATEST)]) == 0
    )
    assert cv2.imread(str(made)).shape == (96, 128, 3)


def test_fine_tuning_starts_from_a_checkpoint_of_another_run(trained):
    trained.options |= {"name": "tuned"}
    trained.options["path"]["pretrain_network_g"] = "experiments/run/models/net_g_best.pth"
    trained.options["train"] |= {"optim_g": {"type": "Adam", "lr": 0.0}, "total_iter": 1}
    trained.train()
    tuned = trained.weights(1, "tuned")["params"]
    best = trained.weights("best")["params_ema"]
    assert all(tuned[name].allclose(best[name]) for name in best)
