"""`dlgsanet ablate`: variants by option alone, trained alike."""

import csv
import os
import signal
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


def test_runs_of_another_base_file_are_not_continued(base, capfd):
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
    ],
)
def test_every_schedule_is_scaled_to_a_run_of_any_length(base, schedule, expected):
    options = yaml.safe_load(base.read_text())
    options["train"]["scheduler"] = schedule
    check_options(options, True, base)
    short = variant_options(options, "relu", 3, 5)
    check_options(short, True, base)
    assert short["train"]["scheduler"] == schedule | expected


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
        (None, "network_g", {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_is_asked_to_save_and_waited_for(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    training = """if True:
        import signal, sys, time, pathlib
        signal.signal(signal.SIGTERM, lambda *_: time.sleep(0.5) or pathlib.Path("saved").touch() or sys.exit(75))
        pathlib.Path("started").touch()
        time.sleep(300)"""

    def stop():
        while not Path("started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    assert ablation._exit_code([sys.executable, "-c", training], os.environ) == exit_code(number)
    assert Path("saved").exists()
