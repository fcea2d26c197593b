"""Option files as users write them: one message lists every fault, the allowed values and the nearest name."""

import pytest
import torch
import yaml

from dlgsanet.commands.arguments import ArgumentParser, add_option_file, option_file
from dlgsanet.errors import UserError
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import read_options


def read(options, *arguments):
    """Read the options as the training command does."""
    parser = ArgumentParser()
    add_option_file(parser)
    with open("file.yml", "w") as file:
        yaml.safe_dump(options, file)
    return read_options(**option_file(parser.parse_args(["-opt", "file.yml", *arguments])), is_train=True)


def faults(options, *arguments) -> str:
    with pytest.raises(UserError) as error:
        read(options, *arguments)
    return str(error.value)


def test_options_are_completed_for_basicsr(options, tmp_path):
    read_back = read(options)
    assert read_back["is_train"] is True
    assert (read_back["rank"], read_back["world_size"], read_back["dist"]) == (0, 1, False)
    assert read_back["datasets"]["train"]["phase"] == "train"
    assert read_back["datasets"]["val"]["scale"] == 2
    root = tmp_path / "experiments" / options["name"]
    assert read_back["path"]["models"] == str(root / "models")


def test_every_fault_is_named_in_one_message(options):
    options["network_g"]["actvation"] = options["network_g"].pop("activation")
    options["network_g"]["dim"] = "48"
    options["datasets"]["train"]["use_hflp"] = True
    options["train"]["optim_g"]["lr"] = "5e-4"
    options["train"]["scheduler"]["type"] = "MultistepLR"
    options["val"]["metrics"]["psnr"]["test_y_chanel"] = True
    options["loger"] = options.pop("logger")
    options["path"]["strict_load"] = True
    message = faults(options)
    for text in (
        "network_g: unknown option 'actvation'; did you mean activation?",
        "datasets.train: unknown option 'use_hflp'; did you mean use_hflip?",
        "train.optim_g.lr: '5e-4' is not a number",
        "train.scheduler.type: unknown type 'MultistepLR'; did you mean MultiStepLR?",
        "val.metrics.psnr: unknown option 'test_y_chanel'; did you mean test_y_channel?",
        "unknown option 'loger'; did you mean logger?",
        "logger: is missing",
        "path: unknown option 'strict_load'; did you mean strict_load_g?",
    ):
        assert text in message
    assert message.splitlines()[0] == f"file.yml has {len(message.splitlines()) - 1} faults:"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataroot_gt": ["a", "b"]}, "datasets.train.dataroot_lq: give as many roots"),
        ({"dataroot_gt": ["a"], "dataroot_lq": ["a", "b"]}, "datasets.train.dataroot_lq: give as many roots"),
        ({"dataroot_gt": [], "dataroot_lq": []}, "datasets.train.dataroot_lq: give as many roots"),
        ({"dataroot_gt": ["a"], "dataroot_lq": ["b"], "shares": [0.5, 0.5]}, "datasets.train.shares: give one share"),
        ({"dataroot_gt": ["a", "a"], "dataroot_lq": ["b", "b"], "shares": [0.5, 0.6]}, "their sum is 1.1"),
        ({"shares": [1]}, "datasets.train.shares: give one share"),
        ({"dataroot_gt": ["a", "none"], "dataroot_lq": ["a", "b"]}, "datasets.train.dataroot_gt: there is no none"),
    ],
)
def test_lists_of_data_roots_that_do_not_fit(options, tmp_path, changes, expected):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options["datasets"]["train"] |= {"type": "CachedPairedImageDataset"} | changes
    assert expected in faults(options)


def test_lists_of_data_roots_are_relocated(options, tmp_path):
    for name in ("HR", "LQ"):
        (tmp_path / "elsewhere/More" / name).mkdir(parents=True)
    changes = {"dataroot_gt": ["datasets/More/HR"] * 2, "dataroot_lq": ["datasets/More/LQ"] * 2, "shares": [0.9, 0.1]}
    options["datasets"] = {
        "train": options["datasets"]["train"] | {"type": "CachedPairedImageDataset"} | changes,
    }
    del options["val"]
    read_back = read(options, "--data-root", str(tmp_path / "elsewhere"))
    assert read_back["datasets"]["train"]["dataroot_gt"] == [str(tmp_path / "elsewhere/More/HR")] * 2


def test_a_missing_data_root_is_named(options):
    options["datasets"]["train"]["dataroot_gt"] = "datasets/DIV2X/HR"
    message = faults(options)
    assert "datasets.train.dataroot_gt" in message
    assert "datasets/DIV2X/HR" in message
    assert len(message.splitlines()) == 1


def test_a_missing_weight_file_is_named(options):
    options["path"]["pretrain_network_g"] = "weights/none.pth"
    assert "path.pretrain_network_g: there is no file weights/none.pth" in faults(options)


def test_data_roots_change_without_editing(options, tmp_path):
    (tmp_path / "datasets").rename(tmp_path / "elsewhere")
    read_back = read(options, "--data_root", str(tmp_path / "elsewhere"))
    assert read_back["datasets"]["train"]["dataroot_gt"] == str(tmp_path / "elsewhere/DIV2K/HR")


@pytest.mark.parametrize("spelling", ["--data-root", "--data_root", "--data-root=", "--data_root="])
def test_flags_may_have_hyphens_or_underscores(options, tmp_path, spelling):
    (tmp_path / "datasets").rename(tmp_path / "else_where")
    given = [f"{spelling}else_where"] if spelling.endswith("=") else [spelling, "else_where"]
    read_back = read(options, *given, "--force_yml", "name=a_b", "--debug")
    assert read_back["datasets"]["train"]["dataroot_gt"] == "else_where/DIV2K/HR"
    assert read_back["name"] == "debug_a_b"


def test_force_yml_sets_values_as_yaml_reads_them(options):
    read_back = read(
        options, "--force_yml", "train:ema_decay=0.9", "datasets:train:use_rot=false", "path:resume_state=~"
    )
    assert read_back["train"]["ema_decay"] == 0.9
    assert read_back["datasets"]["train"]["use_rot"] is False


def test_force_yml_removes_sections(options):
    both = [
        "datasets:val={name: V, type: PairedImageDataset, dataroot_lq: datasets, dataroot_gt: datasets}",
        "val={val_freq: 5}",
    ]
    assert "val" in read(options, "--force_yml", *both)["datasets"]
    read_back = read(options, "--force_yml", *both, "datasets:val=null", "val=null")
    assert "val" not in read_back
    assert [*read_back["datasets"]] == ["train"]
    assert "network_g: is missing" in faults(options, "--force_yml", "network_g=~")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("+2.5e-4", 0.00025), (".5e-3", 0.0005), ("1", 1), ("!!float 1e-3", 0.001)],
)
def test_force_yml_takes_numbers_as_people_write_them(options, value, expected):
    assert read(options, "--force_yml", f"train:optim_g:lr={value}")["train"]["optim_g"]["lr"] == expected


def test_force_yml_takes_them_in_lists_and_leaves_text_alone(options):
    given = ["train:optim_g:betas=[9e-1, 0.99]", "name='1e5'", "datasets:train:name=1e5x2"]
    read_back = read(options, "--force_yml", *given)
    assert read_back["train"]["optim_g"]["betas"] == [0.9, 0.99]
    assert (read_back["name"], read_back["datasets"]["train"]["name"]) == ("1e5", "1e5x2")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train:ema_dcay=0.9", "train: unknown option 'ema_dcay'; did you mean ema_decay?"),
        ("trian:ema_decay=0.9", "unknown section 'trian'; did you mean train? Choose from datasets, "),
        ("datasets:test:name=a", "datasets:test:name=a: unknown section 'test'; choose from train"),
        ("train:ema_decay", "train:ema_decay"),
        ("train:total_iter=__import__('os').getpid()", "train.total_iter"),
        ("train.ema_decay=0.9", "train.ema_decay=0.9: sections end with a colon; write train:ema_decay=0.9"),
        ("datasets:train:filename_tmpl={}x4", """in quotes: "datasets:train:filename_tmpl='{}x4'\""""),
    ],
)
def test_force_yml_is_checked_too_and_runs_nothing(options, assignment, expected):
    assert expected in faults(options, "--force_yml", assignment)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: [", "broken.yml"),
        (b"name: a\nname: b\n", "'name'"),
        (b"- a list\n", "broken.yml"),
        (b"\xff\xfe\x00", "broken.yml"),
        (b"a: !!python/object/apply:os.getpid []\n", "broken.yml"),
    ],
)
def test_unreadable_files(tmp_path, content, expected):
    path = tmp_path / "broken.yml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_yaml(path)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"none\.yml"):
        load_yaml("none.yml")


def test_tf32_needs_a_gpu_that_has_it(options, monkeypatch):
    options["train"]["precision"] = "tf32"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "train.precision" in faults(options)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "An older card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert all(named in faults(options) for named in ("train.precision", "An older card", "sm_75", "sm_80"))
    options["train"]["precision"] = "fp32"
    assert read(options)["train"]["precision"] == "fp32"
    options["train"]["precision"] = "tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert read(options)["train"]["precision"] == "tf32"
    options["num_gpu"] = 0
    assert "train.precision" in faults(options)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"optim_g": {"type": "SGD", "lr": 0.1}},
        {"compile": "max-autotune"},
        {"scheduler": {"type": "OneCycleLR", "max_lr": 0.1, "total_steps": 10**6}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cuda_graphs_do_not_take(options, monkeypatch, change):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options["train"] |= change
    assert read(options)["train"]["cuda_graph"] == "auto"
    options["train"]["cuda_graph"] = True
    assert "train.cuda_graph" in faults(options)


def test_cuda_graphs_need_a_gpu(options, monkeypatch):
    options["train"] |= {"cuda_graph": True, "compile": True}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "train.cuda_graph" in faults(options)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert read(options)["train"]["cuda_graph"]
