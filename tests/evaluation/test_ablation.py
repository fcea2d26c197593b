"""`dlgsanet ablate`: variants by option alone, trained alike."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.cli import main
from dlgsanet.evaluation import ablation
from dlgsanet.evaluation.ablation import VARIANTS, variant_options
from dlgsanet.options.read import check_options
from dlgsanet.signals import exit_code
from tests.conftest import REPOSITORY
from tests.evaluation import stand_in
from tests.evaluation.conftest import SMALL, data_set, small_weights


@pytest.fixture
def base(tmp_path, photographs, monkeypatch):
    """A training option file, in the folder to run in."""
    monkeypatch.chdir(tmp_path)
    for file in ("HR/coffee.png", "LR_bicubic/X2/coffeex2.png"):  # BasicSR trains only on multiples of the scale
        (photographs / "Photos" / file).unlink()
    photos = data_set()
    training = {"gt_size": 16, "use_hflip": True, "use_rot": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}
    options = {
        "name": "small",
        "model_type": "DLGSANetModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 1,
        "datasets": {"train": photos | training, "val": photos},
        "network_g": {"type": "DLGSANet", "upscale": 2, **SMALL},
        "path": {"pretrain_network_g": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [50, 80], "gamma": 0.5},
            "total_iter": 100,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss"},
        },
        "val": {"val_freq": 50, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 100, "use_tb_logger": False},
    }
    path = tmp_path / "base.yml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture
def in_this_process(monkeypatch):
    """Train without a process for each run, which takes seconds to start."""
    monkeypatch.setattr(ablation, "run_in_process", lambda work, arguments, signals: main(*arguments))


def test_variants_differ_only_in_their_network(base):
    options = yaml.safe_load(base.read_text())
    made = {name: variant_options(options, name, 3, 10) for name in VARIANTS}
    assert {tuple(o["train"]["scheduler"]["milestones"]) for o in made.values()} == {(5, 8)}
    layers = {
        name: len(
            list(DLGSANet(**{k: v for k, v in o["network_g"].items() if k != "type"}).groups[0].blocks.children())
        )
        for name, o in made.items()
    }
    assert layers.pop("local") == layers.pop("global") == 2  # one layer per block instead of two, so twice the blocks
    assert set(layers.values()) == {1}
    shared = [{k: v for k, v in o.items() if k not in ("name", "network_g")} for o in made.values()]
    assert all(one == shared[0] for one in shared)
    changed = {"activation", "topk_ratio", "idynamic", "buildblock_type", "blocks"}
    rest = [{k: v for k, v in o["network_g"].items() if k not in changed} for o in made.values()]
    assert all(one == rest[0] for one in rest)
    assert options == yaml.safe_load(base.read_text())


def test_trains_and_prints_the_table_and_what_the_weights_favour(base, capfd):
    options = yaml.safe_load(base.read_text())
    weights = small_weights(base.parent / "start.pth", activation="topk", topk_ratio=0.25)
    options["path"]["pretrain_network_g"] = str(weights)
    base.write_text(yaml.safe_dump(options))
    assert main(["ablate", "-opt", str(base), "--iterations", "2", "--variants", "topk25", "sigmoid"]) == 0
    out = capfd.readouterr().out
    table = out[out.rindex("variant ") :]
    assert "MHDLSA + SparseGSA (sigmoid)" in table
    assert "bicubic" in table
    with open(base.parent / "results/ablation/ablation.csv") as file:
        runs = {row["run"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert set(runs) == {"bicubic", "topk25 10", "sigmoid 10"}
    assert runs["topk25 10"] != runs["sigmoid 10"]
    note = f"start from {weights}, which was trained as topk25 "
    assert note in out
    assert note in (base.parent / "results/ablation/ablation.md").read_text()


def test_runs_of_another_base_file_are_not_continued(base, in_this_process, capfd):
    def ablate():
        return main(["ablate", "-opt", str(base), "--iterations", "2", "--variants", "relu"])

    options = yaml.safe_load(base.read_text())
    assert ablate() == 0
    options["train"]["optim_g"]["lr"] = 2e-3
    base.write_text(yaml.safe_dump(options))
    capfd.readouterr()
    assert ablate() == 2
    out, err = capfd.readouterr()
    assert "train.optim_g.lr was 0.001, is 0.002" in err
    assert "goes on from here" not in err
    assert "bicubic" not in out


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"type": "MultiStepLR", "milestones": [50, 80, 90, 95]}, {"milestones": [2, 4, 5]}),
        ({"type": "WSD", "decay_iter": 90}, {"decay_iter": 4}),
        ({"type": "OneCycleLR", "max_lr": 1e-3, "total_steps": 100}, {"total_steps": 5}),
        (
            {"type": "CosineAnnealingRestartLR", "periods": [50, 50], "restart_weights": [1, 1]},
            {"periods": [2, 3]},
        ),
        ({"type": "OneCycleLR", "max_lr": 1e-3, "epochs": 5, "steps_per_epoch": 20}, {"total_steps": 5}),
        ({"type": "CosineAnnealingLR", "T_max": 200}, {"T_max": 10}),
        ({"type": "CosineAnnealingWarmRestarts", "T_0": 40, "T_mult": 2}, {"T_0": 2}),
        ({"type": "StepLR", "step_size": 20, "gamma": 0.5}, {"step_size": 1}),
        ({"type": "PolynomialLR", "total_iters": 100}, {"total_iters": 5}),
        (
            {"type": "CyclicLR", "base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 40, "cycle_momentum": False},
            {"step_size_up": 2},
        ),
        ({"type": "ExponentialLR", "gamma": 0.5**0.05}, {"gamma": pytest.approx(0.5)}),
    ],
)
def test_every_schedule_is_scaled_to_a_run_of_any_length(base, schedule, expected):
    options = yaml.safe_load(base.read_text())
    options["train"]["scheduler"] = schedule
    check_options(options, True, base)
    short = variant_options(options, "relu", 3, 5)
    check_options(short, True, base)
    kept = {key: value for key, value in schedule.items() if "epoch" not in key}
    assert short["train"]["scheduler"] == kept | expected


def test_the_warm_up_is_scaled_too(base):
    options = yaml.safe_load(base.read_text())
    assert variant_options(options, "relu", 3, 5)["train"]["warmup_iter"] == -1
    options["train"]["warmup_iter"] = 40
    assert variant_options(options, "relu", 3, 5)["train"]["warmup_iter"] == 2


def test_runs_of_other_lengths_are_other_runs(base):
    options = yaml.safe_load(base.read_text())
    assert len({variant_options(options, "relu", 3, iterations)["name"] for iterations in (10, 20)}) == 2


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("train", "total_iter", None),
        ("train", "total_iter", 0),
        ("train", "scheduler", None),
        ("logger", "save_checkpoint_freq", None),
        (None, "logger", None),
        (None, "val", 3),
        (None, "network_g", 3),
        (None, "name", None),
    ],
)
def test_a_faulty_file_is_named(base, section, option, value, capsys):
    options = yaml.safe_load(base.read_text())
    of = options[section] if section else options
    of.pop(option)
    of |= {option: value} if value is not None else {}
    base.write_text(yaml.safe_dump(options))
    assert main(["ablate", "-opt", str(base), "--iterations", "2"]) == 2
    assert f"{base}: {f'{section}.' if section else ''}{option}: " in capsys.readouterr().err
    assert not (base.parent / "results").exists()


def without_validation(options):
    del options["datasets"]["val"], options["val"]


def normalised(options):
    for section in options["datasets"].values():
        section |= {"mean": [0.5] * 3, "std": [0.5] * 3}


def resumed(options):
    options["path"]["resume_state"] = "1.state"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_validation, "datasets: has no data set val"),
        (normalised, "mean, std: not for testing"),
        (resumed, "path.resume_state: variants begin anew"),
    ],
)
def test_what_cannot_be_scored_is_not_trained(base, change, named, capsys):
    options = yaml.safe_load(base.read_text())
    change(options)
    base.write_text(yaml.safe_dump(options))
    assert main(["ablate", "-opt", str(base), "--iterations", "2", "--variants", "base"]) == 2
    assert named in capsys.readouterr().err
    assert not (base.parent / "experiments").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--variants", "nothing"], "--variants: unknown variant 'nothing'"),
        (["--data_root", "elsewhere"], "elsewhere"),
    ],
)
def test_errors_come_before_training(base, arguments, named, capsys):
    assert main(["ablate", "-opt", str(base), "--iterations", "2", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert not (base.parent / "experiments").exists()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_is_asked_to_save_and_waited_for(base, monkeypatch, number, capfd):
    monkeypatch.setattr(ablation, "run_command", stand_in.training)

    def stop():
        wait_for(Path("started").exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    code = exit_code(number)
    assert main(["ablate", "-opt", str(base), "--iterations", "2", "--variants", "relu", "topk"]) == code
    assert Path("saved").exists()
    out = capfd.readouterr().out
    assert f"Stopped by {signal.Signals(number).name}" in out
    assert out.endswith(f"the same command goes on from here (exit code {code})\n")


def test_a_signal_while_images_are_scored(base, monkeypatch, capfd):
    monkeypatch.setattr(ablation, "run_in_process", lambda *_: 0)
    monkeypatch.setattr(ablation, "_score", lambda *_, **__: (signal.raise_signal(signal.SIGTERM) for _ in range(3)))
    assert main(["ablate", "-opt", str(base), "--iterations", "2", "--variants", "relu"]) == 75
    assert "Stopped by SIGTERM" in capfd.readouterr().out
    assert not Path("results/ablation/ablation.csv").exists()


def test_a_training_ends_with_a_killed_ablation(tmp_path):
    code = (
        "from dlgsanet.signals import *; from tests.evaluation.stand_in import training; "
        "run_in_process(training, ([],), StopSignals().__enter__())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ) as ablation:
        wait_for((tmp_path / "started").exists)
        ablation.kill()
    training = int((tmp_path / "started").read_text())
    wait_for(lambda: not Path(f"/proc/{training}").exists())


def test_a_network_of_ones_own(base, in_this_process, capfd):
    # A class of its own name: other tests register the example's in this process.
    example = (REPOSITORY / "docs/examples/own_network.py").read_text().replace("OwnNetwork", "AblatedNetwork")
    (base.parent / "mine.py").write_text(example)
    options = yaml.safe_load(base.read_text())
    options["network_g"] = {"type": "AblatedNetwork", "channels": 8, "scale": 2}
    base.write_text(yaml.safe_dump(options))
    command = ["ablate", "-opt", str(base), "--iterations", "2", "--import", "mine.py"]
    assert main(command) == 2
    assert "--variants: give some: base, or changes of network_g" in capfd.readouterr().err
    assert main([*command, "--variants", "relu"]) == 2
    assert "relu is a variant of DLGSANet" in capfd.readouterr().err
    assert main([*command, "--variants", "chanels=9"]) == 2
    assert "did you mean channels?" in capfd.readouterr().err
    assert main([*command, "--variants", "base", "channels=4"]) == 0
    rows = capfd.readouterr().out.partition("params [K]")[2].splitlines()
    parameters = {row.split()[0]: row.split()[1] for row in rows if len(row.split()) > 3}
    assert parameters["base"] == "2.1"
    assert parameters["channels=4"] == "0.9"
    with open("results/ablation/ablation.csv") as file:
        runs = {row["run"] for row in csv.DictReader(file)}
    assert runs == {"bicubic", "base 10", "channels=4 10"}


def test_variants_by_changes_of_the_network(base):
    options = yaml.safe_load(base.read_text())
    made = variant_options(options, "window_size=5,idynamic=false,upsampler=a/b", 3, 10)
    assert made["network_g"] == options["network_g"] | {"window_size": 5, "idynamic": False, "upsampler": "a/b"}
    assert made["name"] == "small_window_size=5,idynamic=false,upsampler=a_b_10_seed3"
    assert variant_options(options, "base", 3, 10)["network_g"] == options["network_g"]
