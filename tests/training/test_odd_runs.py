"""Runs that BasicSR's options allow: they work, or they are refused in one line before work begins."""

import shutil

import cv2
import pytest
import torch

from dlgsanet.archs.checkpoint import read_checkpoint, write_checkpoint


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


def test_a_file_that_is_no_image_in_a_folder_of_images(workplace):
    for part in ("HR", "X2"):
        shutil.copytree(workplace.folder / "train" / part, workplace.folder / "junk" / part)
        (workplace.folder / "junk" / part / "Thumbs.db").write_bytes(b"not an image")
    srmodel(workplace)
    for key in ("gt", "lq"):
        data_set = workplace.options["datasets"]["train"]
        data_set[f"dataroot_{key}"] = data_set[f"dataroot_{key}"].replace("train", "junk")
    said = workplace.train(code=2)
    assert "datasets.train" in said.splitlines()[-1]
    assert "Thumbs" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_metric_that_needs_larger_pictures(workplace):
    workplace.options["val"]["metrics"]["niqe"] = {"type": "calculate_niqe", "crop_border": 2, "better": "lower"}
    said = workplace.train(code=2)
    assert "val.metrics.niqe" in said.splitlines()[-1]
    assert "crop0.png" in said.splitlines()[-1]
    assert "Traceback" not in said
