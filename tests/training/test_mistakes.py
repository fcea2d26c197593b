"""Mistakes in option files that only data, weights and folders show: one line with file and option, nothing written."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.cli import main
from dlgsanet.training.loop import Loop


@pytest.fixture
def refused(workplace, monkeypatch, capsys):
    """Start a command with the options as they are; the line with which it ends before work begins."""
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr(Loop, "run", lambda *_: pytest.fail("the run has begun"))
    network = DLGSANet(**{key: value for key, value in workplace.options["network_g"].items() if key != "type"})
    torch.save({"params": network.state_dict()}, "weights.pth")
    Path("notes.txt").write_text("no weights\n")

    def refused(command="train", *arguments):
        options = workplace.options if command == "train" else as_test_file(workplace.options)
        Path("file.yml").write_text(yaml.safe_dump(options))
        before = files()
        assert main([command, "-opt", "file.yml", *arguments]) == 2
        assert files() == before
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("dlgsanet: error: ")
        return line.removeprefix("dlgsanet: error: ")

    return refused


def files():
    return {path: path.lstat().st_mtime_ns for path in Path().rglob("*") if not path.is_dir()}


def as_test_file(options):
    return {key: options[key] for key in ("name", "model_type", "scale", "num_gpu", "network_g")} | {
        "datasets": {"test_1": options["datasets"]["val"]},
        "path": options["path"] | {"pretrain_network_g": options["path"]["pretrain_network_g"] or "weights.pth"},
        "val": {"save_img": True, "metrics": options["val"]["metrics"]},
    }


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("datasets.train", {"gt_size": 4000}, "gt_size"),
        ("datasets.train", {"dataroot_gt": "notes.txt"}, "dataroot_gt"),
        ("datasets.train", {"io_backend": {"type": "lmdb"}}, "dataroot_gt"),
        ("datasets.train", {"cache_dir": "notes.txt"}, "cache_dir"),
        ("datasets.train", {"dataset_enlarge_ratio": 2}, "dataset_enlarge_ratio"),
        ("datasets.val", {"filename_tmpl": "{}x4"}, "filename_tmpl"),
        (
            "val.metrics",
            {"niqe": {"type": "calculate_niqe", "crop_border": 2, "better": "lower"}},
            "crop0.png: val.metrics.niqe",
        ),
        ("path", {"pretrain_network_g": "notes.txt"}, "path.pretrain_network_g: notes.txt"),
        ("path", {"pretrain_network_g": "weights.pth", "param_key_g": "params_ema"}, "path.param_key_g to params"),
        ("path", {"resume_state": "weights.pth"}, "path.resume_state"),
        ("train", {"teacher_opt": {"path": "notes.txt"}}, "train.teacher_opt"),
        ("train", {"perceptual_opt": {"type": "PerceptualLoss", "layer_weights": 1}}, "train.perceptual_opt"),
        (
            "train",
            {"perceptual_opt": {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg99"}},
            "train.perceptual_opt",
        ),
        ("network_g", {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 8}, "network_g"),
    ],
)
def test_what_a_training_refuses(workplace, refused, section, changes, named):
    inner = workplace.options
    for key in section.split("."):
        inner = inner[key]
    if "type" in changes:
        inner.clear()
    inner |= changes
    line = refused()
    assert line.startswith("file.yml: ")
    assert section.partition(".")[0] in line
    assert named in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"path": {"pretrain_network_g": "notes.txt"}}, "path.pretrain_network_g: notes.txt"),
        ({"datasets": {"val": {"filename_tmpl": "{}x4"}}}, "filename_tmpl"),
        ({"val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 30}}}}, "val.metrics.psnr"),
    ],
)
def test_what_a_test_refuses(workplace, refused, changes, named):
    for section, values in changes.items():
        for key, value in values.items():
            inner = workplace.options[section]
            inner[key] = inner[key] | value if isinstance(value, dict) else value
    line = refused("test")
    assert line.startswith("file.yml: ")
    assert named in line


def test_crops_that_are_smaller_than_the_filter_of_the_linear_start(workplace, refused):
    workplace.options["train"]["network_init"] = "linear"
    workplace.options["datasets"]["train"]["gt_size"] = 8
    assert "datasets.train.gt_size from 10 up" in refused()


def test_weights_whose_features_are_not_finite(workplace, refused):
    state = torch.load("weights.pth", weights_only=True)["params"]
    torch.save({"params": {name: 1e9 * tensor for name, tensor in state.items()}}, "weights.pth")
    workplace.options["train"]["network_init"] = "last"
    workplace.options["path"] |= {"pretrain_network_g": "weights.pth", "strict_load_g": False}
    assert refused().startswith("file.yml: path.pretrain_network_g: its features are not finite")


def test_a_teacher_of_colors_for_a_gray_network(workplace, refused):
    workplace.options["network_g"]["in_chans"] = 1
    for data_set in workplace.options["datasets"].values():
        data_set["color"] = "y"
    workplace.options["train"]["teacher_opt"] = {"path": "weights.pth"}
    line = refused()
    assert line.startswith("file.yml: train.teacher_opt: weights.pth")


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("kind", ["PairedImageDataset", "CachedPairedImageDataset"])
def test_an_image_that_is_named_twice(workplace, refused, part, kind):
    name = {"train": "astronaut", "val": "crop0"}[part]
    Path("meta.txt").write_text(f"{name}.png (96,128,3)\n" * 2)
    workplace.options["datasets"][part] |= {"type": kind, "meta_info_file": "meta.txt"}
    line = refused()
    assert line.startswith(f"file.yml: datasets.{part}: meta_info_file: meta.txt")
    assert name in line


@pytest.mark.parametrize("content", [b"astronaut.png\n\ncoffee.png\n", b"\xef\xbb\xbfastronaut.png\n"])
def test_lists_that_only_our_data_set_reads(workplace, refused, monkeypatch, content):
    """BasicSR's takes an empty line for an image, and the mark that some editors write for a part of the name."""
    Path("meta.txt").write_bytes(content)
    train = workplace.options["datasets"]["train"]
    train |= {"type": "PairedImageDataset", "meta_info_file": "meta.txt"}
    line = refused()
    assert line.startswith("file.yml: datasets.train: ")
    assert "meta_info_file" in line
    train["type"] = "CachedPairedImageDataset"
    monkeypatch.setattr(Loop, "run", lambda *_: 0)
    Path("file.yml").write_text(yaml.safe_dump(workplace.options))
    assert main(["train", "-opt", "file.yml"]) == 0


@pytest.mark.parametrize(
    ("command", "blocked"),
    [
        ("train", "experiments"),
        ("train", "tb_logger"),
        ("test", "results"),
        ("test", "results/run"),
        ("test", "results/run/visualization/Crops"),
    ],
)
def test_files_where_folders_are_needed(workplace, refused, command, blocked):
    workplace.options["logger"]["use_tb_logger"] = True
    Path(blocked).parent.mkdir(parents=True, exist_ok=True)
    Path(blocked).write_text("not a folder\n")
    assert blocked in refused(command)


def test_names_of_pictures_that_are_too_long(workplace, refused):
    shutil.copytree(Path("val").resolve(), "long")
    for path in [*Path("long").rglob("crop1*.png")]:
        path.rename(path.with_name(path.name.replace("crop1", "c" * 150)))
    workplace.options["datasets"]["val"] |= {"dataroot_gt": "long/HR", "dataroot_lq": "long/X2"}
    workplace.options["name"] = "n" * 150
    assert "c" * 150 in refused("test")


def test_a_schedule_that_goes_on_after_the_end_is_reported(workplace, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr(Loop, "run", lambda *_: 0)
    workplace.options["train"] |= {"total_iter": 6, "warmup_iter": 7}
    Path("file.yml").write_text(yaml.safe_dump(workplace.options))
    assert main(["train", "-opt", "file.yml"]) == 0
    said = next(workplace.experiment().glob("train_*.log")).read_text()
    assert "train.scheduler.milestones [8]" in said
    assert "train.warmup_iter 7" in said
