"""Runs that BasicSR's options allow: they work, or they are refused in one line before work begins."""

import csv
from copy import deepcopy
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.misc import check_resume

from dlgsanet.archs.checkpoint import read_checkpoint, write_checkpoint
from dlgsanet.cli import main
from dlgsanet.options.read import read_options
from dlgsanet.training.run import data_sets
from tests.training.conftest import OPTIONS, identical


def srmodel(workplace) -> None:
    workplace.options |= {"model_type": "SRModel"}
    workplace.options["train"]["total_iter"] = 2
    workplace.options["datasets"]["train"]["type"] = "PairedImageDataset"


def test_a_gray_network_trains_on_luma(workplace):
    workplace.options["network_g"]["in_chans"] = 1
    workplace.options["train"]["total_iter"] = 2
    for data_set in workplace.options["datasets"].values():
        data_set["color"] = "y"
    workplace.options["val"]["save_img"] = True
    said = workplace.train()
    assert "Best psnr" in said
    weights = workplace.weights("latest")["params"]
    assert any(tensor.ndim == 4 and tensor.shape[1] == 1 for tensor in weights.values())
    picture = next(workplace.experiment().glob("visualization/*/2/*.png"))
    assert cv2.imread(str(picture), cv2.IMREAD_UNCHANGED).ndim == 2


@pytest.mark.parametrize("model", ["DLGSANetModel", "SRModel"])
def test_a_gray_network_is_tested_with_the_scores_of_its_validation(workplace, monkeypatch, model):
    workplace.options["network_g"]["in_chans"] = 1
    workplace.options["train"]["total_iter"] = 2
    workplace.options["val"] |= {"val_freq": 2, "save_img": True}
    for data_set in workplace.options["datasets"].values():
        data_set["color"] = "y"
    validated = float(workplace.train().split("Best psnr on Crops: ")[1].split()[0])
    test = {key: workplace.options[key] for key in ("name", "scale", "num_gpu", "network_g")}
    test |= {"model_type": model, "datasets": {"test_1": workplace.options["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": "experiments/run/models/net_g_latest.pth", "param_key_g": "params_ema"}
    test["val"] = {"save_img": True, "metrics": workplace.options["val"]["metrics"]}
    (workplace.folder / "test.yml").write_text(yaml.safe_dump(test))
    monkeypatch.chdir(workplace.folder)
    assert main(["test", "-opt", "test.yml"]) == 0
    with open("results/run/scores.csv") as file:
        means = {row["method"]: row for row in csv.DictReader(file) if row["image"] == "mean"}
    assert float(means["run"]["psnr"]) == pytest.approx(validated, abs=1e-4)  # of which the log has 4 digits
    assert float(means["bicubic"]["psnr"]) > 20
    for made in Path("results/run/visualization/Crops").glob("*.png"):
        seen = workplace.experiment() / f"visualization/Crops/2/{made.name.replace('_run', '')}"
        assert (cv2.imread(str(made), -1) == cv2.imread(str(seen), -1)).all()


def test_gray_samples_are_basicsrs(workplace):
    """Whole images, of our training set and of BasicSR's, both with `color: y`."""
    from basicsr.data import build_dataset

    opt = workplace.options["datasets"]["val"] | {"color": "y", "phase": "val", "scale": 2}
    for key in ("dataroot_gt", "dataroot_lq"):
        opt[key] = str(workplace.folder / opt[key])
    ours, theirs = (build_dataset(opt | {"type": f"{name}ImageDataset"}) for name in ("CachedPaired", "Paired"))
    by_name = {sample["gt_path"]: sample for sample in theirs}  # BasicSR takes them in the folder's own order
    assert len(ours) == len(by_name) > 0
    for one in ours:
        other = by_name[one["gt_path"]]
        assert torch.equal(one["lq"], other["lq"])
        assert torch.equal(one["gt"], other["gt"])


NEAREST = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class Nearest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=2) + self.nothing
"""


def test_normalised_samples_are_validated_as_images(workplace):
    workplace.import_own(NEAREST)
    workplace.options |= {"network_g": {"type": "Nearest"}}
    workplace.options["train"] |= {"total_iter": 1, "optim_g": {"type": "Adam", "lr": 0.0}}
    workplace.options["val"]["save_img"] = True
    found = []
    for mean, std in (([0.5, 0.4, 0.3], [0.5, 0.25, 0.2]), (None, None)):
        for data_set in workplace.options["datasets"].values():
            data_set |= {"mean": mean, "std": std}
        (line,) = (line for line in workplace.train().splitlines() if "Validation at" in line)
        pictures = sorted(workplace.experiment().glob("visualization/*/1/*.png"))
        found.append((line.partition("Validation")[2], [path.read_bytes() for path in pictures]))
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["params", "bare", "safetensors"])
def test_basicsrs_model_starts_from_every_form_of_weights(workplace, finished, form):
    source = finished.experiment() / "models/net_g_latest.pth"
    weights = read_checkpoint(source, "params").state
    path = workplace.folder / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        write_checkpoint(path, weights, {})
    else:
        torch.save(weights if form == "bare" else {"params": weights}, path)
    srmodel(workplace)
    workplace.options["train"]["optim_g"]["lr"] = 0.0
    workplace.options["path"]["pretrain_network_g"] = str(path)
    workplace.train()
    trained = workplace.weights("latest")["params"]
    assert all(torch.equal(trained[name], weights[name]) for name in weights)


def test_the_order_of_images_does_not_depend_on_the_disk(workplace, monkeypatch):
    from basicsr.data import data_util

    listed = data_util.scandir
    monkeypatch.setattr(data_util, "scandir", lambda *given, **more: sorted(listed(*given, **more), reverse=True))
    srmodel(workplace)
    (workplace.folder / "options.yml").write_text(yaml.safe_dump(workplace.options))
    monkeypatch.chdir(workplace.folder)
    images, _ = data_sets(read_options("options.yml", is_train=True))
    names = [Path(paths["gt_path"]).stem for paths in images.paths]
    assert names == sorted(names)


def test_basicsrs_own_training_resumes_with_the_weights_and_their_averages(tmp_path):
    options = deepcopy(OPTIONS) | {"is_train": True, "dist": False, "rank": 0}
    options["path"] |= {name: str(tmp_path / name) for name in ("models", "training_states")}
    for folder in ("models", "training_states"):
        (tmp_path / folder).mkdir()
    model = build_model(options)
    for iteration in (1, 2):
        model.update_learning_rate(iteration)
        model.feed_data({"lq": torch.rand(2, 3, 12, 12), "gt": torch.rand(2, 3, 24, 24)})
        model.optimize_parameters(iteration)
    model.save(epoch=0, current_iter=2)
    options["path"]["resume_state"] = str(tmp_path / "training_states/2.state")
    check_resume(options, 2)
    resumed = build_model(options)
    resumed.resume_training(torch.load(options["path"]["resume_state"]))
    for name in ("net_g", "net_g_ema"):
        assert identical(getattr(resumed, name).state_dict(), getattr(model, name).state_dict())
    assert not identical(model.net_g.state_dict(), model.net_g_ema.state_dict())
