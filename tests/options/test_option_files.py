"""The option files of the repository are correct and runnable, and differ only where they are meant to differ."""

import json
import re

import jsonschema
import pytest
import torch

import dlgsanet.plugin  # noqa: F401  # registers the networks
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import check_options
from tests.conftest import REPOSITORY

FILES = sorted(REPOSITORY.glob("options/*/*.yml"))
TRAIN = [path for path in FILES if path.parent.name == "train"]
SISR = re.compile(
    r"(?P<phase>train|test)_SISR_(?P<data>\w+?)_(?P<size>Tiny|Light|Large)_(?P<code>\d+C\dG\dB)(?P<topk>_topk\d*)?"
    r"_DLGSANet_SRx(?P<scale>\d)(?P<rest>\w*)"
)
CODES = {"Tiny": "48C3G3B", "Light": "48C4G3B", "Large": "90C6G4B"}
TLC_KERNEL = {2: 96, 3: 72, 4: 48}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_pass_the_check(path):
    check_options(load_yaml(path), path.parent.name == "train", path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_fit_the_schema_that_their_first_line_names(path):
    first = path.read_text().splitlines()[0]
    named = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert named.resolve() == REPOSITORY / f"options/schema/{path.parent.name}.json"
    jsonschema.validate(load_yaml(path), json.loads(named.read_text()), jsonschema.Draft7Validator)


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_a_network_is_built_and_trained_for_a_step(path):
    from basicsr.archs import build_network
    from basicsr.losses import build_loss

    from dlgsanet.models.optimization import build_optimizer

    options = load_yaml(path)
    torch.manual_seed(0)
    network = build_network(options["network_g"])
    lq = torch.rand(2, 3, 5, 6)
    output = network(lq)
    assert output.shape == (2, 3, 5 * options["scale"], 6 * options["scale"])
    optimizer = build_optimizer(options["train"]["optim_g"], network)
    target = torch.rand_like(output)
    before = build_loss(options["train"]["pixel_opt"])(output, target)
    before.backward()
    optimizer.step()
    assert all(p.grad is not None for p in network.parameters())
    assert build_loss(options["train"]["pixel_opt"])(network(lq), target) < before


def expected(path) -> dict:
    """Options that follow from the name of a file."""
    name = SISR.fullmatch(path.stem).groupdict()
    scale = int(name["scale"])
    dim, groups, blocks = (int(n) for n in re.findall(r"\d+", CODES[name["size"]]))
    network = {"dim": dim, "groups": groups, "blocks": blocks, "upscale": scale, "tlc_kernel": TLC_KERNEL[scale]}
    if name["topk"]:
        network |= {"activation": "topk", "topk_ratio": int(name["topk"].removeprefix("_topk") or 50) / 100}
    assert name["code"] == CODES[name["size"]]
    return {"name": path.stem, "scale": scale, "network_g": network}


def without(options: dict, *paths: str) -> dict:
    for path in paths:
        *sections, key = path.split(".")
        section = options
        for part in sections:
            section = section[part]
        section.pop(key, None)
    return options


@pytest.mark.parametrize("path", [p for p in FILES if SISR.fullmatch(p.stem)], ids=lambda path: path.stem)
def test_a_file_says_what_its_name_says(path):
    options, wanted = load_yaml(path), expected(path)
    assert options["name"] == wanted["name"]
    assert options["scale"] == wanted["scale"]
    assert options["network_g"].items() >= wanted["network_g"].items()
    for dataset in options["datasets"].values():
        assert str(wanted["scale"]) in dataset["dataroot_lq"].rsplit("X", 1)[1]
    for metric in options["val"]["metrics"].values():
        assert metric["crop_border"] == wanted["scale"]
        assert metric["test_y_channel"] is True
    if "train" in options:
        patch = int(re.search(r"img_size_(\d+)", path.stem)[1])
        assert options["datasets"]["train"]["gt_size"] == patch * wanted["scale"]


# The weights that a file starts from.
START = {"path.pretrain_network_g", "path.strict_load_g", "train.network_init"}


def values(node, where: str = ""):
    """(place, value) of every option."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from values(item, f"{where}.{key}" if where else key)
    else:
        yield where, node


def without_what_the_name_says(path) -> dict:
    """The options of a file as those of Tiny x2."""
    options = without(load_yaml(path), "name", "scale")
    network = ("dim", "groups", "blocks", "upscale", "tlc_kernel", "activation", "topk_ratio")
    without(options, *(f"network_g.{key}" for key in network))
    without(options, "val.metrics.psnr.crop_border", "val.metrics.ssim.crop_border")
    for dataset in options["datasets"].values():
        without(dataset, "gt_size")
        dataset["dataroot_lq"] = re.sub(r"X\d$", "", dataset["dataroot_lq"])
        dataset["filename_tmpl"] = re.sub(r"x\d$", "", dataset.get("filename_tmpl", "x2"))
    return dict(values(options))


def family(path) -> tuple[str, ...]:
    return SISR.fullmatch(path.stem).group("phase", "data", "rest")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_a_family_differ_only_in_what_their_names_say_and_in_their_start(path):
    first = next(p for p in FILES if family(p) == family(path))
    one, other = without_what_the_name_says(first), without_what_the_name_says(path)
    assert {where for where in one.keys() | other.keys() if one.get(where, "none") != other.get(where, "none")} <= START


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_schedule_and_length_of_a_training_file_agree(path):
    options = load_yaml(path)
    train = options["train"]
    if train["scheduler"]["type"] == "CosineAnnealingLR":
        assert train["scheduler"]["T_max"] == train["total_iter"]
    if train["scheduler"]["type"] != "WSD":  # whose runs end when it is decided
        assert train["total_iter"] % options["val"]["val_freq"] == 0
        assert train["total_iter"] % options["logger"]["save_checkpoint_freq"] == 0
    rate, power = re.search(r"_lr(\d)e_(\d)", path.stem).groups()
    assert train["optim_g"]["lr"] == float(f"{rate}e-{power}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_weights_that_a_file_starts_from_are_made_by_another_file(path):
    weights = load_yaml(path)["path"]["pretrain_network_g"]
    if weights and weights.startswith("experiments/"):
        assert weights.split("/")[1] in {p.stem for p in TRAIN}
    elif weights:
        assert (REPOSITORY / weights).is_file()


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "test"], ids=lambda path: path.stem)
def test_a_test_file_is_of_the_network_that_its_training_file_makes(path):
    training = next(p for p in TRAIN if p.stem.startswith(path.stem.replace("test", "train", 1)))
    assert load_yaml(path)["network_g"] == load_yaml(training)["network_g"]


def test_the_published_recipe():
    train = load_yaml(next(p for p in TRAIN if "Large_90C6G4B_DLGSANet_SRx4" in p.stem))
    assert train["datasets"]["train"]["batch_size_per_gpu"] * train["num_gpu"] == 16
    assert train["train"]["total_iter"] == 500_000
    assert train["train"]["scheduler"]["milestones"] == [250_000, 400_000, 450_000, 475_000]
    assert train["train"]["optim_g"] == {"type": "Adam", "lr": 5e-4, "weight_decay": 0, "betas": [0.9, 0.99]}
    assert train["train"]["ema_decay"] == 0.999
