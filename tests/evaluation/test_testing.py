"""`dlgsanet test`, called as from the command line."""

import csv
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from dlgsanet.cli import main
from dlgsanet.folder_lock import owned
from tests.evaluation.conftest import data_set, save, small_weights


@pytest.fixture
def run(option_file, monkeypatch, capsys):
    """Run `dlgsanet test` in the folder of the option file; returns (exit code, stdout, lines of stderr)."""
    monkeypatch.chdir(option_file.parent)

    def run(*more):
        code = main(["test", "-opt", str(option_file), *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def scores(folder):
    with open(folder / "results/small/scores.csv") as file:
        return {(row["image"], row["method"]): float(row["psnr"]) for row in csv.DictReader(file)}


def test_scores_are_basicsrs_and_pictures_are_saved(run, option_file, photographs):
    code, out, _ = run()
    assert code == 0

    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.metrics import calculate_psnr

    found = scores(option_file.parent)
    folder = option_file.parent / "results/small/visualization/Photos"
    values = []
    for name in ("astronaut", "chelsea", "coffee"):
        picture = np.array(Image.open(folder / f"{name}x2_small.png"))
        original = np.array(Image.open(photographs / f"Photos/HR/{name}.png"))[: len(picture), : picture.shape[1]]
        values.append(calculate_psnr(picture[..., ::-1], original[..., ::-1], 2, test_y_channel=True))
        assert found[name, "small"] == pytest.approx(values[-1], abs=1e-6)
        assert found[name, "bicubic"] > found[name, "small"]
    assert found["mean", "small"] == pytest.approx(np.mean(values), abs=1e-6)
    assert f"{np.mean(values):.2f}" in out
    assert f"| Photos | small | {np.mean(values):.2f} |" in (option_file.parent / "results/small/scores.md").read_text()


METRIC = """
from basicsr.utils.registry import METRIC_REGISTRY

@METRIC_REGISTRY.register()
def mean_difference(img, img2):
    return abs(img.astype(float) - img2).mean()
"""


def test_a_metric_of_ones_own_of_which_less_is_better(run, option_file):
    (option_file.parent / "metric.py").write_text(METRIC)
    metric = "val:metrics:psnr={type: mean_difference, better: lower}"
    code, _, lines = run("--import", "metric.py", "--force_yml", metric)
    assert (code, lines) == (0, [])
    found = scores(option_file.parent)
    assert found["chelsea", "small"] > found["chelsea", "bicubic"] > 0


DATA_SET = """
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY

@DATASET_REGISTRY.register()
class Noisy(PairedImageDataset):
    pass
"""


def test_a_data_set_of_ones_own_is_refused(run, option_file):
    """Its samples may be others than those of its files."""
    (option_file.parent / "data.py").write_text(DATA_SET)
    code, _, lines = run("--import", "data.py", "--force_yml", "datasets:test_1:type=Noisy")
    assert code == 2
    assert "data set Photos: type: " in lines[-1]
    assert not (option_file.parent / "results/small").exists()


def test_second_test_of_a_name_stops_before_it_writes(run, option_file):
    with owned(option_file.parent / "results/small"):
        code, _, lines = run()
    assert code == 2
    assert "results/small" in lines[-1]
    assert not (option_file.parent / "results/small").exists()


def test_the_network_in_the_file_is_the_one_that_is_tested(run, option_file):
    """The saved picture is the output of the network, rounded as BasicSR rounds it."""
    assert run()[0] == 0
    from dlgsanet.archs.checkpoint import build_network, read_checkpoint

    network = build_network(read_checkpoint(option_file.parent / "small.pth"))
    lr = np.array(Image.open(option_file.parent / "datasets/Photos/LR_bicubic/X2/chelseax2.png"))
    output = network(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).numpy()
    picture = np.array(Image.open(option_file.parent / "results/small/visualization/Photos/chelseax2_small.png"))
    np.testing.assert_array_equal(picture, (output.clip(0, 1) * 255).round().astype(np.uint8))


def test_formats_and_models_score_alike(run, option_file):
    """.pth and .safetensors, averages in them, our model and BasicSR's, which published files name."""
    assert run()[0] == 0
    first = scores(option_file.parent)
    small_weights(option_file.parent / "small.safetensors")
    assert run("--force_yml", f"path:pretrain_network_g={option_file.parent}/small.safetensors")[0] == 0
    assert scores(option_file.parent) == first
    assert run("--force_yml", "model_type=SRModel")[0] == 0
    assert scores(option_file.parent) == first
    state = torch.load(option_file.parent / "small.pth")["params"]
    random = {name: torch.rand_like(value) for name, value in state.items()}
    torch.save({"params": random, "params_ema": state}, option_file.parent / "small.pth")
    for model in ("DLGSANetModel", "SRModel"):
        assert run("--force_yml", f"model_type={model}")[0] == 0
        assert scores(option_file.parent) == first


def test_basicsrs_model_reports_weights_of_another_size(run, option_file):
    small_weights(option_file.parent / "small.pth", dim=24)
    code, _, err = run("--force_yml", "model_type=SRModel")
    assert code == 2
    assert "small.pth" in err[-1]
    assert "dim is 24" in err[-1]


def test_random_weights_need_permission(run, option_file):
    nameless = "path:pretrain_network_g=~"
    code, _, err = run("--force_yml", nameless)
    assert code == 2
    assert "path.pretrain_network_g" in err[-1]
    assert not (option_file.parent / "results").exists()
    assert run("--random_weights", "--force_yml", nameless)[0] == 0


def test_broken_images_are_all_named_before_anything_is_written(run, option_file, photographs):
    content = (photographs / "Photos/HR/astronaut.png").read_bytes()
    (photographs / "Photos/HR/astronaut.png").write_bytes(content[: len(content) // 2])
    (photographs / "Photos/LR_bicubic/X2/chelseax2.png").write_bytes(b"")
    lr = photographs / "Photos/LR_bicubic/X2/coffeex2.png"
    save(lr, np.array(Image.open(lr))[1:])
    code, _, err = run()
    assert code == 2
    for name, line in zip(("HR/astronaut.png", "chelseax2.png", "coffeex2.png"), err[-4:], strict=False):
        assert name in line
    assert all(size in err[-2] for size in ("26x27", "53x56"))
    assert err[-1].startswith("3 images")
    assert not (option_file.parent / "results").exists()


def overflowing(path):
    state = torch.load(path, weights_only=True)
    state["params"] = {name: 1e30 * value for name, value in state["params"].items()}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda root: (root / "small.pth").unlink(), "small.pth"),
        (lambda root: (root / "small.pth").write_bytes(b"PK broken"), "small.pth"),
        (
            lambda root: small_weights(root / "small.pth", dim=24),
            "small.pth: was trained with other options: dim is 24",
        ),
        (lambda root: overflowing(root / "small.pth"), "astronautx2.png: the output is not finite"),
        (lambda root: shutil.rmtree(root / "datasets/Photos/HR"), "datasets/Photos/HR"),
        (lambda root: shutil.rmtree(root / "datasets/Photos/LR_bicubic/X2"), "datasets/Photos/LR_bicubic/X2"),
        (lambda root: (root / "datasets/Photos/LR_bicubic/X2/coffeex2.png").unlink(), "coffeex2.png"),
        (lambda root: (root / "datasets/Photos/HR/coffee.png").write_bytes(b"no image"), "HR/coffee.png"),
    ],
)
def test_one_clear_last_line(run, option_file, harm, named):
    harm(option_file.parent)
    code, _, err = run()
    assert code == 2
    assert named in err[-1]
    assert not (option_file.parent / "results").exists()


def test_other_metrics_are_basicsrs():
    from dlgsanet.evaluation.scoring import metric

    image = data.astronaut()[:200, :300]
    options = {"type": "calculate_niqe", "crop_border": 4}
    found = metric(options)(image, image)

    from basicsr.metrics import calculate_niqe

    assert found == calculate_niqe(image[..., ::-1], 4)


def add_set(option_file, name):
    options = yaml.safe_load(option_file.read_text())
    options["datasets"]["test_2"] = data_set(name)
    option_file.write_text(yaml.safe_dump(options))


def test_absent_data_sets_are_left_out_in_one_line(run, option_file):
    add_set(option_file, "Manga109")
    code, out, err = run()
    assert code == 0
    assert "Photos" in out
    assert len([line for line in err if "datasets/Manga109" in line]) == 1
    assert run("--strict")[0] == 2


def test_data_sets_are_chosen_by_name(run, option_file):
    add_set(option_file, "Manga109")
    code, _, err = run("--datasets", "Photos", "--strict")
    assert code == 0
    assert not [line for line in err if "Manga109" in line]
    assert "unknown data set 'Set5'" in run("--datasets", "Set5")[2][-1]
    assert "datasets/Manga109" in run("--datasets", "Manga109")[2][-1]


@pytest.mark.parametrize("model", ["DLGSANetModel", "SRModel"])
def test_weights_that_were_trained_with_other_options_are_named(run, option_file, model):
    small_weights(option_file.parent / "small.pth", activation="relu")
    change = ["--force-yml", "network_g:activation=topk", f"model_type={model}"]
    code, _, err = run(*change)
    assert code == 2
    assert "small.pth" in err[-1]
    assert "activation is 'relu'" in err[-1]
    assert run(*change, "path:strict_load_g=false")[0] == 0


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_basicsrs_model_reads_what_ours_does(run, option_file):
    state = torch.load(option_file.parent / "small.pth")["params"]
    change = ["--force-yml", "model_type=SRModel"]
    torch.save({f"module.{name}": value for name, value in state.items()}, option_file.parent / "small.pth")
    assert run(*change)[0] == 0
    torch.save({"params": state, "more": _Malicious()}, option_file.parent / "small.pth")
    code, _, err = run(*change)
    assert code == 2
    assert "small.pth" in err[-1]
    assert not (option_file.parent / "ran").exists()
