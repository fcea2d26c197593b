"""`dlgsanet benchmark`, called as from the command line."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dlgsanet.archs.checkpoint import build_network, read_checkpoint
from dlgsanet.cli import main
from dlgsanet.errors import UserError
from dlgsanet.evaluation.journal import Journal, digest_of_package
from dlgsanet.evaluation.perceptual import perceptual_metric
from dlgsanet.inference.self_ensemble import self_ensemble
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import EDSR, small_weights, write_set

KEYS = ("params", "params_ema")
NEAREST = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class Nearest(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return {brightness} * self.up(x)
"""


@pytest.fixture
def place(tmp_path, photographs, monkeypatch):
    """A folder with `datasets/Photos`, `A.pth` and `B.safetensors` (x2) to run commands in."""
    monkeypatch.chdir(tmp_path)
    small_weights(tmp_path / "A.pth", seed=1)
    small_weights(tmp_path / "B.safetensors", seed=2, activation="topk")
    return tmp_path


def benchmark(*arguments):
    return main(["benchmark", *arguments, "--data", "datasets/Photos", "--runs", "0", "-o", "out"])


def image_scores(path="out/x2.csv"):
    with open(path) as file:
        return {(r["image"], r["method"]): (float(r["psnr"]), float(r["ssim"])) for r in csv.DictReader(file)}


def test_scores_are_those_of_the_saved_pictures(place):
    assert benchmark("A.pth", "Sparse=B.safetensors", "--metrics", "psnr_rgb") == 0

    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.metrics import calculate_psnr, calculate_ssim

    scores = image_scores()
    assert {method for _, method in scores} == {"bicubic", "A", "Sparse"}
    for (image, method), (psnr, ssim) in scores.items():
        if image == "mean":
            continue
        picture = np.array(Image.open(f"out/pictures/x2/{method}/Photos/{image}.png"))
        original = np.array(Image.open(f"datasets/Photos/HR/{image}.png"))[: len(picture), : picture.shape[1]]
        bgr = picture[..., ::-1], original[..., ::-1]
        assert psnr == pytest.approx(calculate_psnr(*bgr, 2, test_y_channel=True), abs=1e-6)
        assert ssim == pytest.approx(calculate_ssim(*bgr, 2, test_y_channel=True), abs=1e-6)
    known = json.loads((place / "out/x2.json").read_text())
    of_a = next(m for m in known["methods"] if m["name"] == "A")
    values = [psnr for (image, method), (psnr, _) in scores.items() if method == "A" and image != "mean"]
    assert of_a["means"]["Photos"]["psnr"] == pytest.approx(np.mean(values), abs=1e-5)
    assert of_a["parameters"] == sum(v.numel() for v in read_checkpoint("A.pth").state.values())
    mean = f"{np.mean(values):.2f}/"
    assert mean in (place / "out/x2.md").read_text()
    assert mean in (place / "out/x2.tex").read_text()


def test_batches_change_nothing(place):
    assert benchmark("A.pth", "--batch", "1") == 0
    one = image_scores()
    for path in (place / "out").rglob("*.*"):
        path.unlink()
    assert benchmark("A.pth", "--batch", "8") == 0
    assert image_scores() == one


def test_continues_where_it_stopped(place):
    """Only what is missing is computed. A truncated line of the journal counts as missing."""
    assert benchmark("A.pth") == 0
    first = image_scores()
    journal = place / "out/journal.jsonl"
    content = journal.read_bytes().rstrip(b"\n")
    lines = content.splitlines()
    cut = next(i for i, line in enumerate(lines) if b"pictures/x2/A/Photos/coffee" in line)
    journal.write_bytes(b"\n".join([*lines[:cut], *lines[cut + 1 :], lines[cut][:40]]))
    written = {path: os.stat(path).st_mtime_ns for path in (place / "out").rglob("*.png")}
    time.sleep(0.01)
    assert benchmark("A.pth", "B.safetensors") == 0
    again = {path for path, when in written.items() if os.stat(path).st_mtime_ns != when}
    assert again == {place / "out/pictures/x2/A/Photos/coffee.png"}
    assert {key: value for key, value in image_scores().items() if key[1] != "B"} == first


def test_other_weights_under_the_same_name_are_scored_again(place):
    assert benchmark("A.pth") == 0
    first = image_scores()
    small_weights(place / "A.pth", seed=3)
    assert benchmark("A.pth") == 0
    assert image_scores()["mean", "A"] != first["mean", "A"]
    small_weights(place / "A.pth", seed=1)
    assert benchmark("A.pth") == 0
    assert image_scores() == first


def test_other_weights_of_the_same_file_are_scored_again(place, option_file):
    options = yaml.safe_load(option_file.read_text())
    states = {key: read_checkpoint(small_weights(place / "one.pth", seed=i)).state for i, key in enumerate(KEYS)}
    torch.save(states, options["path"]["pretrain_network_g"])

    def scores(key):
        options["path"]["param_key_g"] = key
        option_file.write_text(yaml.safe_dump(options))
        assert benchmark("small=test.yml") == 0
        return image_scores()

    first, second = (scores(key) for key in KEYS)
    assert first["mean", "small"] != second["mean", "small"]
    assert scores(KEYS[0]) == first


def test_a_network_whose_code_was_changed_is_scored_again(place, option_file):
    from basicsr.utils.registry import ARCH_REGISTRY

    options = yaml.safe_load(option_file.read_text())
    options |= {"network_g": {"type": "Nearest"}, "path": {"pretrain_network_g": None}, "import": "nearest.py"}
    option_file.write_text(yaml.safe_dump(options))

    def scores(brightness):
        ARCH_REGISTRY._obj_map.pop("Nearest", None)  # a new process has not imported the file yet
        (place / "nearest.py").write_text(NEAREST.format(brightness=brightness))
        assert benchmark("small=test.yml", "--random-weights") == 0
        return image_scores()

    # Of another length: within a second, Python takes a file of the same length for unchanged.
    assert scores(0.9)["mean", "small"] != scores(0.85)["mean", "small"]


def test_a_network_whose_imports_were_changed_is_scored_and_measured_again(place, option_file):
    """Also those of imports, in a package, and what only the costs depend on."""
    options = yaml.safe_load(option_file.read_text())
    options |= {"network_g": {"type": "Nearest"}, "path": {"pretrain_network_g": None}}
    option_file.write_text(yaml.safe_dump(options))
    (place / "own/parts").mkdir(parents=True)
    (place / "own/__init__.py").write_text("")
    (place / "own/parts/__init__.py").write_text("from . import values")
    nearest = NEAREST.format(brightness="BRIGHTNESS").replace("Linear(1, 1)", "Linear(1, WIDTH)")
    (place / "own/nearest.py").write_text("from .parts import BRIGHTNESS, WIDTH\n" + nearest)

    def results(brightness, width):
        (place / "own/parts/values.py").write_text(f"from own.more import WIDTH\nBRIGHTNESS = {brightness}\n")
        (place / "own/more.py").write_text(f"WIDTH = {width}\n")
        (place / "own/parts/__init__.py").write_text("from .values import BRIGHTNESS, WIDTH\n")
        command = ["benchmark", "small=test.yml", "--random-weights", "--import", "own.nearest", "--runs", "0"]
        arguments = [sys.executable, "-m", "dlgsanet", *command, "--data", "datasets/Photos", "-o", "out"]
        subprocess.run(arguments, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        known = json.loads((place / "out/x2.json").read_text())
        network = next(m for m in known["methods"] if m["name"] == "small")
        return image_scores()["mean", "small"], network["parameters"]

    first, second, third = results(0.9, 1), results(0.8, 1), results(0.8, 5)
    assert first[0] != second[0] == third[0]
    assert first[1] == second[1] != third[1]


def test_another_version_of_the_package_scores_again(place, monkeypatch):
    def written():
        assert benchmark("A.pth") == 0
        return {path: os.stat(path).st_mtime_ns for path in (place / "out").rglob("*.png")}

    first = written()
    assert written() == first
    package = place / "dlgsanet"
    package.mkdir()
    for name in ("__init__.py", "kernel.cu"):
        (package / name).write_text("// changed")
    monkeypatch.setattr("dlgsanet.__file__", str(package / "__init__.py"))
    digest_of_package.cache_clear()
    second = written()
    assert all(second[path] != when for path, when in first.items())
    (package / "kernel.cu").write_text("// changed again")
    digest_of_package.cache_clear()
    assert all(when != second[path] for path, when in written().items())
    monkeypatch.undo()
    digest_of_package.cache_clear()


def test_failures_are_reported_and_everything_else_is_computed(place, capsys):
    write_set(place / "datasets", "Broken")
    (place / "datasets/Broken/LR_bicubic/X2/chelseax2.png").write_bytes(b"")
    (place / "C.pth").write_bytes(b"PK nothing")
    arguments = ["A.pth", "C.pth", "--runs", "0", "-o", "out"]
    sets = [f"datasets/{name}" for name in ("Photos", "Missing", "Broken")]
    assert main(["benchmark", *arguments, "--data", *sets]) == 2
    out, err = capsys.readouterr()
    for named in ("C.pth", "Missing", "chelseax2.png"):
        assert named in err
    assert "3 parts" in err.splitlines()[-1]
    assert "(2 of 3)" in out
    with open("out/x2.csv") as file:
        scored = [(row["data set"], row["method"]) for row in csv.DictReader(file) if row["image"] != "mean"]
    expected = [("Photos", 3), ("Broken", 2)]
    assert all(scored.count((name, m)) == count for name, count in expected for m in ("bicubic", "A"))
    assert main(["benchmark", *arguments, "--data", "datasets/Photos"]) == 2
    assert "1 part " in capsys.readouterr().err


def test_without_any_test_set_nothing_is_measured_or_written(place, monkeypatch, capsys):
    monkeypatch.setattr("dlgsanet.evaluation.benchmark.add_costs", lambda *_: pytest.fail("costs were measured"))
    assert main(["benchmark", "A.pth", "-o", "new", "--data", "datasets/Missing"]) == 2
    assert "datasets/Missing" in capsys.readouterr().err
    assert not list(place.glob("new/*.csv"))


def test_a_scale_of_no_network_is_refused(place, capsys):
    assert main(["benchmark", "A.pth", "-o", "new", "--data", "datasets/Photos", "--scales", "2", "3"]) == 2
    assert "--scales: no network given is of x3; they are of x2" in capsys.readouterr().err
    assert not list(place.glob("new/*.csv"))


@pytest.mark.parametrize("name", ["..", ".", "a/b", "n" * 256])
def test_name_that_no_folder_can_have_is_found_before_the_work(place, capsys, name):
    assert main(["benchmark", f"{name}=A.pth", "--runs", "0", "-o", "new", "--data", "datasets/Photos"]) == 2
    assert name in capsys.readouterr().err
    assert not list(place.glob("new/**/*.png"))


def test_any_network_of_basicsr_is_compared(place, option_file):
    options = yaml.safe_load(option_file.read_text())
    options |= {"name": "EDSR", "network_g": EDSR, "path": {"pretrain_network_g": None}}
    (place / "edsr.yml").write_text(yaml.safe_dump(options))
    assert benchmark("A.pth", "edsr.yml") == 2
    assert benchmark("A.pth", "edsr.yml", "--random-weights") == 0
    assert ("mean", "EDSR") in image_scores()


def test_swinir_is_padded_as_basicsr_pads_it(place, option_file):
    options = yaml.safe_load(option_file.read_text())
    network = {"type": "SwinIR", "img_size": 16, "window_size": 8, "depths": [1], "embed_dim": 4, "num_heads": [1]}
    network |= {"mlp_ratio": 2, "upsampler": "pixelshuffledirect", "upscale": 2}
    options |= {"name": "SwinIR", "model_type": "SwinIRModel", "network_g": network, "path": {}}
    (place / "swinir.yml").write_text(yaml.safe_dump(options))
    assert benchmark("swinir.yml", "--random-weights") == 0
    assert ("coffee", "SwinIR") in image_scores()  # 26x28 pixels
    assert main(["complexity", "swinir.yml", "--runs", "0", "--size", "70x50"]) == 0

    (place / "swinir.yml").write_text(yaml.safe_dump(options | {"model_type": "SRModel", "name": "Unpadded"}))
    assert benchmark("swinir.yml", "A.pth", "--random-weights") == 2  # the rest is computed
    assert ("mean", "A") in image_scores()


def test_the_papers_figures_are_shown_below_a_published_size(place, capsys):
    from dlgsanet.archs.sizes import size_options

    options = size_options("Tiny", 2)
    small_weights(place / "tiny.pth", **options)
    (place / "datasets/Photos").rename(place / "datasets/Set5")
    assert main(["benchmark", "tiny.pth", "--data", "datasets/Set5", "--runs", "0", "-o", "out"]) == 0
    mean = image_scores()["mean", "tiny"][0]
    out = capsys.readouterr().out
    assert "Tiny (paper)" in out
    assert "38.16/0.9611" in out
    assert f"{round(mean, 2) - 38.16:.2f}".replace("-", "−") in out


def test_lpips_needs_its_package(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as if it were not installed
    perceptual_metric.cache_clear()
    assert benchmark("A.pth", "--metrics", "lpips") == 2
    assert "pip install pyiqa" in capsys.readouterr().err
    assert ("mean", "A") in image_scores()  # everything else is computed


def test_lpips_reports_a_backbone_that_cannot_be_downloaded(place, monkeypatch, capsys):
    def create_metric(name, device):
        raise OSError("<urlopen error no route to host>")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    perceptual_metric.cache_clear()
    assert benchmark("A.pth", "--metrics", "lpips") == 2
    err = capsys.readouterr().err
    assert "pyiqa" in err
    assert "no route to host" in err


def test_lpips_and_dists_are_computed_by_pyiqa(place, monkeypatch):
    def create_metric(name, device):
        return lambda image, reference: (image - reference).abs().mean() * {"lpips": 1, "dists": 2}[name]

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    perceptual_metric.cache_clear()
    assert benchmark("A.pth", "--metrics", "lpips", "dists") == 0
    picture = np.array(Image.open("out/pictures/x2/A/Photos/chelsea.png")) / 255
    original = np.array(Image.open("datasets/Photos/HR/chelsea.png")) / 255
    images = json.loads((place / "out/x2.json").read_text())["images"]
    row = next(r for r in images if (r["image"], r["method"]) == ("chelsea", "A"))
    assert row["lpips"] == pytest.approx(np.abs(picture - original).mean(), abs=1e-5)
    assert row["dists"] == pytest.approx(2 * row["lpips"])


@pytest.mark.parametrize("size", [(1, 3, 20, 20), (2, 3, 12, 17)])
def test_self_ensemble_is_the_mean_of_the_eight_orientations(tmp_path, size):
    network = build_network(read_checkpoint(small_weights(tmp_path / "A.pth"))).double()
    x = torch.rand(size, dtype=torch.float64)
    turned = []
    for quarters in range(4):
        for mirrored in (False, True):
            seen = torch.rot90(x.flip(3) if mirrored else x, quarters, (2, 3))
            back = torch.rot90(network(seen), -quarters, (2, 3))
            turned.append(back.flip(3) if mirrored else back)
    ensemble = self_ensemble(lambda x: network(x))
    torch.testing.assert_close(ensemble(x), torch.stack(turned).mean(0).float(), rtol=0, atol=1e-6)


def test_self_ensemble_is_another_row(place):
    assert benchmark("A.pth", "--self-ensemble") == 0
    scores = image_scores()
    assert scores["mean", "A+"] != scores["mean", "A"]


def test_names_that_are_not_utf8(place):
    """Names of the test set, a picture, the weights and the folder of results."""
    odd = os.fsdecode(b"caf\xe9")
    for folder, suffix in (("HR", ""), ("LR_bicubic/X2", "x2")):
        os.rename(f"datasets/Photos/{folder}/coffee{suffix}.png", f"datasets/Photos/{folder}/{odd}{suffix}.png")
    os.rename("datasets/Photos", f"datasets/{odd}")
    os.rename("B.safetensors", f"{odd}.safetensors")
    files = [f"{odd}.safetensors", "A.pth"]
    assert main(["benchmark", *files, "--data", f"datasets/{odd}", "--runs", "0", "-o", f"out{odd}"]) == 0
    scores = image_scores(f"out{odd}/x2.csv")
    assert {("caf\\xe9", "caf\\xe9"), ("caf\\xe9", "A"), ("mean", "caf\\xe9")} <= set(scores)
    page = (place / f"out{odd}/x2.html").read_text(encoding="utf-8")
    assert "caf\\\\xe9" in page
    assert str(place) not in page  # pages may be given to others
    assert main(["figure", f"{odd}/{odd}", "--scale", "2", "--results", f"out{odd}", "-o", odd]) == 0
    assert (place / f"{odd}.pdf").is_file()


@pytest.mark.parametrize("limit", [16, pytest.param(32, marks=pytest.mark.long)])
def test_few_open_files(place, limit):
    """Fewer than there are pictures."""
    for number in range(30):
        for folder, suffix in (("HR", ""), ("LR_bicubic/X2", "x2")):
            path = place / "datasets/Photos" / folder
            shutil.copy(path / f"chelsea{suffix}.png", path / f"{number}{suffix}.png")
    command = [sys.executable, "-m", "dlgsanet", "benchmark", "A.pth", "--data", "datasets/Photos", "--runs", "0"]
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((place / "results/benchmark/pictures/x2/A/Photos").iterdir())) == 33


def test_a_full_disk_names_the_journal(tmp_path):
    with closing(Journal(tmp_path)) as journal:
        journal._file = open("/dev/full", "w")  # noqa: SIM115  # closed by the journal
        with pytest.raises(UserError, match=r"/dev/full: No space left"):
            journal.add("a", 1)


@pytest.mark.parametrize(("where", "folder"), [("datasets/Photos", "."), ("datasets/Photos/HR", "..")])
def test_a_test_set_has_the_name_of_its_folder_however_it_is_given(place, monkeypatch, where, folder):
    """Else the pictures of all methods would have one folder, or that of another test set."""
    monkeypatch.chdir(where)
    assert main(["benchmark", str(place / "A.pth"), "--data", folder, "--runs", "0", "-o", str(place / "out")]) == 0
    scores = image_scores(place / "out/x2.csv")
    assert {image for image, method in scores if method == "bicubic"} == {"astronaut", "chelsea", "coffee", "mean"}
    assert len(list((place / "out/pictures/x2/A/Photos").glob("*.png"))) == 3
