"""A run that was stopped, in whatever way, gives the weights of one that was not, bit by bit."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from types import SimpleNamespace

import cv2
import pytest
import torch
from basicsr.models import build_model

from dlgsanet.data.images import png_bytes, read_rgb
from dlgsanet.data.lmdb_images import lmdb_images
from dlgsanet.data.sources import file_source
from dlgsanet.data.storage import write_lmdb
from dlgsanet.models.dlgsanet_model import DivergedError
from dlgsanet.signals import StopSignals
from dlgsanet.training.checkpoints import Checkpoint, Checkpoints
from dlgsanet.training.resume import Position, restore, state_of, weights_of
from dlgsanet.training.validation import _upscale_and_score
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import small_weights
from tests.training.conftest import OPTIONS, Workplace, identical, resumed, tensorboard_steps


def same_end(a: Workplace, b: Workplace, name_a: str = "run", name_b: str = "run") -> bool:
    last = a.options["train"]["total_iter"]
    return all(
        identical(a.weights(which, name_a), b.weights(which, name_b)) for which in ("best", "latest")
    ) and identical(a.checkpoint(last, name_a), b.checkpoint(last, name_b))


def test_killed_run_resumes_bit_by_bit(workplace, finished):
    for iteration, arguments in ((3, []), (7, ["--auto_resume"])):
        workplace.start(*arguments, stop=(iteration, signal.SIGKILL)).end(-signal.SIGKILL)
    assert resumed(workplace.train("--auto_resume"))[1]
    assert same_end(workplace, finished)


def test_same_seed_gives_the_same_weights_whatever_the_workers(workplace, finished):
    workplace.options["datasets"]["train"]["num_worker_per_gpu"] = 3
    workplace.options["train"]["deterministic"] = True
    assert "Precision  fp32, deterministic" in workplace.train()
    assert same_end(workplace, finished)
    workplace.options["manual_seed"] = 11
    workplace.train()
    assert not same_end(workplace, finished)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=["TERM", "USR1", "INT"]
)
def test_signal_saves_and_says_how_to_go_on(workplace, finished, number, code):
    workplace.options["logger"]["save_checkpoint_freq"] = 12
    said = workplace.start(stop=(4, number)).end(code)
    assert "training_states/4.state" in said
    assert "Traceback" not in said
    workplace.train("--auto_resume")
    assert same_end(workplace, finished)


def test_loss_scale_is_resumed_too(workplace):
    half = {"precision": "fp16", "accumulate": 2, "grad_clip": 0.1, "optim_g": {"type": "AdamW", "lr": 1e-3}}
    workplace.options["train"] |= half | {"scheduler": {"type": "CosineAnnealingLR", "T_max": 12}, "warmup_iter": 4}
    workplace.train()
    workplace.options["name"] = "stopped"
    workplace.start(stop=(5, signal.SIGKILL)).end(-signal.SIGKILL)
    workplace.train("--auto_resume")
    assert workplace.checkpoint(12)["scaler"]["_growth_tracker"] > 0
    assert same_end(workplace, workplace, "stopped", "run")


MUON = {
    "optim_g": {"type": "Muon", "lr": 1e-3, "adam_lr": 5e-4},
    "scheduler": {"type": "WSD", "decay_iter": 6},
    "warmup_iter": 2,
    "ema_warmup": True,
}


def test_muon_its_schedule_and_warm_averages_are_resumed_too(workplace):
    workplace.options["train"] |= MUON
    workplace.options["datasets"]["train"]["crop_candidates"] = 3
    workplace.train()
    workplace.options["name"] = "stopped"
    for iteration, arguments in ((4, []), (9, ["--auto_resume"])):
        workplace.start(*arguments, stop=(iteration, signal.SIGKILL)).end(-signal.SIGKILL)
    workplace.train("--auto_resume")
    assert same_end(workplace, workplace, "stopped", "run")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"type": "OneCycleLR", "max_lr": 1e-3, "total_steps": 2}, {"total_steps": 6}),
        ({"type": "CosineAnnealingRestartLR", "periods": [2]}, {"periods": [6]}),
    ],
)
def test_run_goes_on_no_further_than_its_saved_schedule(workplace, before, now):
    workplace.options["train"] |= {"total_iter": 2, "scheduler": before}
    workplace.train()
    workplace.options["train"] |= {"total_iter": 6, "scheduler": before | now}
    said = workplace.fault("--auto_resume")
    assert "as it was saved, ends at iteration 2, before train.total_iter, 6" in said
    assert "path.pretrain_network_g" in said


def test_run_goes_on_from_a_chosen_checkpoint_in_its_own_folder_and_in_another(trained, finished):
    trained.options["path"]["resume_state"] = "experiments/run/training_states/8.state"
    trained.options["name"] = "other"
    assert resumed(trained.train("--auto_resume")) == (8, True)  # there is nothing else to resume
    other, whole = trained.checkpoint(12, "other"), finished.checkpoint(12)
    assert whole["position"].pop("best")["iteration"] == 6
    assert other["position"].pop("best") == {}  # those weights are in the folder of the run
    assert identical(other, whole)
    assert identical(trained.weights("best", "other"), trained.weights("latest", "other"))
    trained.options |= {"name": "run"}
    said = trained.train()
    assert "12.state" in said
    assert "10.state" in said
    again = trained.checkpoint(12)
    assert again["position"].pop("best") == {}  # those of iteration 6 were replaced by those of 12
    assert identical(again, whole)


def test_another_metric_chooses_the_best_weights_anew(trained):
    trained.options["val"]["best"] = {"metric": "ssim"}
    (best,) = re.findall(r"Best ssim on Crops: (\S+) at 12", trained.train("--auto_resume"))  # it is validated again
    assert float(best) < 1  # no PSNR
    assert identical(trained.weights("best"), trained.weights("latest"))


def test_best_weights_of_later_iterations_are_not_taken_for_those_of_the_checkpoint(trained):
    """Those of iteration 12 were better, and replaced those of iteration 6, the best until iteration 8."""
    assert trained.checkpoint(8)["position"]["best"]["iteration"] == 6
    assert trained.weights("best")["iteration"] == 12
    trained.options["path"]["resume_state"] = "experiments/run/training_states/8.state"
    trained.options["train"] |= {"total_iter": 9, "optim_g": {"type": "Adam", "lr": 0.001}}
    assert "Best psnr on Crops" in trained.train()
    assert trained.checkpoint(9)["position"]["best"]["iteration"] == trained.weights("best")["iteration"] == 9


def test_a_chosen_checkpoint_that_is_refused_leaves_later_ones_in_place(trained):
    before = {path.name for path in trained.experiment().glob("training_states/*")}
    trained.options["path"]["resume_state"] = "experiments/run/training_states/8.state"
    trained.options["train"]["optim_g"] = {"type": "SGD", "lr": 0.1}
    assert "SGD" in trained.train(code=2)
    assert {path.name for path in trained.experiment().glob("training_states/*")} == before


def test_checkpoint_of_another_run_begins_a_folder_of_its_own(trained):
    shutil.copytree(trained.experiment(), trained.experiment("other"))
    (trained.experiment("other") / "models/net_g_best.pth").write_text("of an older run")
    trained.options["path"]["resume_state"] = "experiments/run/training_states/8.state"
    trained.options["name"] = "other"
    assert resumed(trained.train()) == (8, True)
    assert len([*trained.experiment().parent.glob("other_archived_*")]) == 1
    assert not (trained.experiment("other") / "record_0.yml").exists()
    assert identical(trained.weights("best", "other"), trained.weights("latest", "other"))


@pytest.mark.parametrize("model_type", ["SRModel", "DLGSANetModel"])
def test_run_that_basicsr_saved_resumes_by_epoch_and_says_so(workplace, model_type):
    workplace.options["train"]["optim_g"]["lr"] = 0.0  # so that the weights show where they come from
    folders = {key: workplace.experiment() / key for key in ("models", "training_states")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    given = {"model_type": "SRModel", "is_train": True, "dist": False, "path": {k: str(v) for k, v in folders.items()}}
    basicsr = build_model(deepcopy(workplace.options) | given)
    for iteration in (1, 2, 3):
        basicsr.update_learning_rate(iteration)
        basicsr.feed_data({"lq": torch.rand(4, 3, 12, 12), "gt": torch.rand(4, 3, 24, 24)})
        basicsr.optimize_parameters(iteration)
    basicsr.save(epoch=2, current_iter=3)
    saved = workplace.weights(3)
    workplace.options["model_type"] = model_type
    workplace.options["datasets"]["train"]["type"] = "PairedImageDataset"
    said = workplace.train("--auto_resume")
    assert resumed(said) == (3, False)
    assert "BasicSR" in said
    assert workplace.weights(3)  # `keep_last` is not for what BasicSR wrote
    state = workplace.checkpoint(12)
    assert state["position"]["samples"] == 2 * 3 + 9 * 4  # two epochs of three images, and nine batches of four since
    assert identical(state["weights"], saved)
    workplace.options["train"]["total_iter"] = 14
    assert resumed(workplace.train("--auto_resume")) == (12, True)


def _options(model_type: str, **train: object) -> dict:
    options = deepcopy(OPTIONS) | {"model_type": model_type, "is_train": True, "dist": False}
    options["train"] |= train
    return options


def test_rate_of_a_state_that_basicsr_saved_in_its_warm_up():
    basicsr = build_model(_options("SRModel"))
    for iteration in (1, 2):
        basicsr.update_learning_rate(iteration, warmup_iter=4)
    assert basicsr.get_current_learning_rate() == [0.0005]
    parts = {"optimizers": basicsr.optimizers, "schedulers": basicsr.schedulers}
    state = {name: [part.state_dict() for part in found] for name, found in parts.items()}
    model = build_model(_options("DLGSANetModel", warmup_iter=4))
    model.resume_training(state | {"iter": 2})
    rates = []
    for iteration in (3, 4, 5):
        model.update_learning_rate(iteration)
        rates += model.get_current_learning_rate()
    assert rates == pytest.approx([0.00075, 0.001, 0.001])


def test_a_run_of_fp16_goes_on_as_a_model_without_a_loss_scale():
    half = build_model(_options("DLGSANetModel", precision="fp16"))
    checkpoint = Checkpoint(1, weights_of(half), state_of(half, Position(1), 0, {}))
    plain = build_model(_options("SRModel"))
    assert restore(plain, checkpoint, 0, 4).iteration == 1
    assert identical(plain.net_g.state_dict(), half.net_g.state_dict())


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("network_g", {"dim": 24}, ["proj.weight is [12, 3, 3, 3] in the file, [24, 3, 3, 3] in", "network_g"]),
        ("train", {"optim_g": {"type": "SGD", "lr": 0.1}}, ["Adam", "SGD"]),
    ],
)
def test_checkpoint_that_does_not_fit_the_options(trained, section, values, expected):
    trained.options[section] |= values
    last = trained.fault("--auto_resume")
    assert last.startswith("dlgsanet: error: ")
    assert all(text in last for text in ["12", *expected]), last


def test_averages_that_begin_in_the_middle_begin_as_the_weights(workplace):
    workplace.options["train"] |= {"ema_decay": 0, "total_iter": 6}
    workplace.train()
    workplace.options["train"] |= {"ema_decay": 1 - 1e-9, "total_iter": 8}  # they stay where they begin
    workplace.train("--auto_resume")
    begun, weights = workplace.weights(8)["params_ema"], workplace.weights(6)["params"]
    assert all(begun[name].allclose(weights[name], atol=1e-6) for name in weights)


def test_what_makes_a_resumed_run_another_one_is_named(trained):
    trained.options |= {"manual_seed": 11}
    trained.options["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 3, "patches_per_image": 2}
    trained.options["train"] |= {"grad_clip": 0.5, "total_iter": 13, "cuda_graph": False}
    trained.options["train"]["optim_g"]["lr"] = 0.5
    said = trained.train("--auto_resume")
    assert resumed(said) == (12, False)
    (resume,) = (line for line in said.splitlines() if " Resume " in line)
    for what in (
        "manual_seed was 10, is 11",
        "datasets.train.gt_size was 24, is 32",
        "samples of an iteration was 4, is 3",
        "images was 3, is 6",
        "train.grad_clip was None, is 0.5",
    ):
        assert what in resume
    assert "cuda_graph" not in resume  # nothing is captured on a CPU
    assert "train.optim_g.lr was 0.001, is 0.5: optimizers and schedules keep" in said
    assert "lr 0.0005 " in said
    said = trained.train("--auto_resume")
    assert resumed(said) == (13, True)
    assert "train.optim_g.lr was 0.001, is 0.5: optimizers and schedules keep" in said  # 0.5 was never used
    assert "Iterations none: the checkpoint has reached train.total_iter, 13" in said


def test_a_checkpoint_of_a_later_version_is_refused(trained):
    checkpoints = Checkpoints(trained.experiment())
    checkpoint = checkpoints.read(12)
    checkpoint.state["position"]["of_a_later_version"] = 1
    checkpoints.save(12, checkpoint.weights, checkpoint.state)
    assert "the checkpoint of iteration 12 is from another version of dlgsanet" in trained.fault("--auto-resume")


@pytest.mark.parametrize("way", ["another size", "the same size", "in a database"])
def test_image_that_was_replaced_is_named(trained, way):
    """Also with the same number of bytes, and the times of the file as they were."""
    trained.own_images()
    image = trained.folder / "train/HR/coffee.png"
    place = file_source(image)
    if way == "in a database":
        write_lmdb(image.parent, trained.folder / "HR.lmdb")
        write_lmdb(trained.folder / "train/X2", trained.folder / "X2.lmdb", "x2")
        folders = {"dataroot_gt": "HR.lmdb", "dataroot_lq": "X2.lmdb", "io_backend": {"type": "lmdb"}}
        trained.options["datasets"]["train"] |= folders
        trained.options["name"] = "other"
        trained.train()
        place = lmdb_images(trained.folder / "HR.lmdb", "dataroot_gt")["coffee"]
    assert resumed(trained.train("--auto_resume")) == (12, True)
    if way == "another size":
        assert cv2.imwrite(str(image), 255 - cv2.imread(str(image))[::-1])
    else:
        before, pixels = os.stat(place.file), read_rgb(image)
        pixels[:, :40] = 0  # takes fewer bytes
        with open(place.file, "r+b") as file:
            file.seek(place.start)
            file.write(png_bytes(pixels, 9).ljust(len(place.read()), b"\0"))
        assert place.file.stat().st_size == before.st_size
        os.utime(place.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    trained.options["train"]["total_iter"] = 13
    said = trained.train("--auto_resume")
    assert resumed(said) == (12, False)
    assert "image contents" in said
    assert ("image files" in said) == (way == "another size")


def test_seed_that_was_drawn_is_drawn_once(workplace):
    del workplace.options["manual_seed"]
    workplace.options["train"]["total_iter"] = 4
    first = workplace.train()
    (seed,) = re.findall(r"seed (\d+)", first)
    workplace.options["train"]["total_iter"] = 8
    said = workplace.train("--auto_resume")
    assert f"seed {seed}" in said
    assert resumed(said) == (4, True)
    workplace.options |= {"name": "whole", "manual_seed": int(seed)}
    workplace.train()
    assert identical(workplace.checkpoint(8), workplace.checkpoint(8, "whole"))


def test_signals_stop_a_run_that_was_started_with_them_blocked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.received == signal.SIGUSR1
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["nohup", "terminal"])
def test_a_closed_terminal_stops_a_run_without_nohup(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == (signal.SIGHUP if handler == signal.SIG_DFL else 0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_stops_with_the_one_that_started_it():
    """However that one ends: a killed script left its training behind."""
    waits = [sys.executable, "-c", "import time; print(end='.', flush=True); time.sleep(600)"]
    code = f"subprocess.run({waits}, preexec_fn=stop_with_the_parent)"
    code = f"import subprocess; from dlgsanet.signals import stop_with_the_parent; {code}"
    script = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert script.stdout.read(1) == b"."
    script.kill()
    begun = time.monotonic()
    script.communicate()  # until the program too has closed its output
    assert time.monotonic() - begun < 300


def test_an_output_of_validation_that_is_not_finite_is_named():
    result = torch.zeros(1, 3, 2, 2)
    result[0, 1, 1, 1] = torch.nan
    nothing = lambda *_: None  # noqa: E731
    model = SimpleNamespace(feed_data=nothing, test=nothing, get_current_visuals=lambda: {"result": result})
    with pytest.raises(DivergedError, match=r"a\.png: .*not finite"):
        _upscale_and_score(model, {"lq_path": ["a.png"]}, {})


KILLS = 50


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_kills_at_random_moments(workplace):
    """At random moments, so also while data are loaded, files are written, or images are validated."""
    total = 8 * KILLS
    workplace.options["logger"]["use_tb_logger"] = True
    workplace.options["train"] |= {"total_iter": total, "scheduler": {"type": "CosineAnnealingLR", "T_max": total}}
    workplace.options["val"]["val_freq"] = 5
    workplace.options["name"] = "whole"
    workplace.train()
    workplace.options["name"] = "stopped"
    moments = random.Random(0)
    for kill in range(KILLS):
        # In a few runs only: the server that workers are forked from imports everything again.
        workplace.options["datasets"]["train"]["num_worker_per_gpu"] = int(kill % 10 == 0)
        if kill % 7 == 6:  # before the first iteration, or in it
            run = workplace.start("--auto_resume")
            time.sleep(moments.uniform(0, 0.3))
            run.signal(signal.SIGKILL)
        else:
            saved = [int(path.stem) for path in workplace.experiment("stopped").glob("training_states/*.state")]
            stop = max(saved, default=0) + moments.randint(1, 4)
            run = workplace.start("--auto_resume", stop=(stop, signal.SIGKILL, moments.uniform(0, 2)))
        run.end(-signal.SIGKILL)
    assert resumed(workplace.train("--auto_resume"))[1]
    assert same_end(workplace, workplace, "stopped", "whole")
    found, expected = (tensorboard_steps(workplace.folder / "tb_logger" / name) for name in ("stopped", "whole"))
    assert found == expected
    assert found["losses/l_pix"] == list(range(1, total + 1))


def test_a_run_of_other_options_is_refused_where_that_is_asked_for(trained):
    def start(seed):
        torch.manual_seed(seed)
        torch.save({"params": {"upsample.0.bias": torch.rand(12)}}, trained.folder / "start.pth")

    trained.options["path"] |= {"pretrain_network_g": "start.pth", "strict_load_g": False}
    trained.options["name"] = "other"
    trained.options["train"]["teacher_opt"] = {"path": "teacher.safetensors"}
    trained.options["import"] = "own.py"
    code, teacher = trained.folder / "own.py", trained.folder / "teacher.safetensors"
    code.write_text("")
    small_weights(teacher, seed=1)
    start(1)
    trained.start(stop=(2, signal.SIGTERM)).end(75)
    again = ["--auto-resume", "--same-options"]
    trained.start(*again, stop=(4, signal.SIGTERM), OMP_NUM_THREADS="2").end(75)  # goes on elsewhere
    (trained.folder / "start.pth").unlink()  # the checkpoint has all weights
    teacher = teacher.rename(trained.folder / "moved.safetensors")
    trained.options["train"]["teacher_opt"] = {"path": teacher.name}
    trained.start(*again, stop=(6, signal.SIGTERM)).end(75)
    assert "path.pretrain_network_g: there is no file start.pth" in trained.train(code=2)
    start(1)
    trained.options["datasets"]["train"]["batch_size_per_gpu"] = 2
    assert "samples of an iteration was 4, is 2" in trained.train(*again, code=2)
    trained.options["datasets"]["train"]["batch_size_per_gpu"] = 4
    start(2)
    small_weights(teacher, seed=2)
    code.write_text("changed = True")
    said = trained.train(*again, code=2)
    assert all(f"{what} was " in said for what in ("initial weights", "teacher's weights", "imported code"))
    assert resumed(trained.train("--auto-resume"))[0] == 6
