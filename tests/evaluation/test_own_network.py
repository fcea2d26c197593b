"""A network of your own in the tables: the example of docs/own_network.md, and other files of this kind."""

import csv
import importlib
import json
import shutil

import pytest
import torch
import yaml

from dlgsanet.cli import main
from dlgsanet.errors import UserError
from dlgsanet.evaluation.published import figures, peers
from dlgsanet.extensions import sources_of
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import small_weights, write_set

EXAMPLES = REPOSITORY / "docs/examples"


@pytest.fixture
def place(tmp_path, photographs, monkeypatch):
    """A folder with the example's two files, its weights, and `datasets/Photos` at x2."""
    for name in ("own_network.py", "own_network.yml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["complexity", "own_network.yml", "--runs", "0"]) == 0  # imports the class

    from basicsr.utils.registry import ARCH_REGISTRY

    torch.manual_seed(0)
    torch.save(ARCH_REGISTRY.get("OwnNetwork")().state_dict(), tmp_path / "own_network.pth")
    return tmp_path


def scored(folder="out"):
    with open(f"{folder}/x2.csv") as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_the_example_is_compared_counted_and_explained(place, capsys):
    small_weights(place / "A.pth")
    data = ["--data", "datasets/Photos", "--runs", "0", "-o", "out"]
    assert main(["benchmark", "own_network.yml", "A.pth", *data]) == 0
    assert scored() == {"bicubic", "Own", "A"}
    assert main(["complexity", "own_network.yml", "A.pth", "--runs", "0"]) == 0
    out = capsys.readouterr().out
    assert "15,148" in out  # parameters
    lr = "datasets/Photos/LR_bicubic/X2/coffeex2.png"
    assert main(["explain", "lam", "own_network.yml", "--image", lr, "--steps", "2", "--window", "8"]) == 0
    assert (place / "lam.png").is_file()


def test_processes_of_two_devices_import_it_and_score_as_one_device(place):
    options = yaml.safe_load((place / "own_network.yml").read_text())
    del options["import"]
    (place / "plain.yml").write_text(yaml.safe_dump(options))
    small_weights(place / "A.pth")
    arguments = ["plain.yml", "A.pth", "--data", "datasets/Photos", "--runs", "0", "--import", "own_network.py"]
    assert main(["benchmark", *arguments, "-o", "two", "--devices", "cpu", "cpu"]) == 0
    assert main(["benchmark", *arguments, "-o", "out"]) == 0
    assert scored() == {"bicubic", "Own", "A"}
    assert (place / "two/x2.csv").read_text() == (place / "out/x2.csv").read_text()


def test_a_size_that_a_network_does_not_take_is_named(place, option_file, capsys):
    only = (
        (place / "own_network.py")
        .read_text()
        .replace("OwnNetwork", "Only")
        .replace("self.body(x)", "self.body(x[:, :, :8])")
    )
    (place / "only.py").write_text(only)
    options = yaml.safe_load((place / "own_network.yml").read_text()) | {"import": "only.py"}
    options["network_g"]["type"] = "Only"
    (place / "only.yml").write_text(yaml.safe_dump(options))
    lr = "datasets/Photos/LR_bicubic/X2/coffeex2.png"
    assert main(["benchmark", "only.yml", "--data", "datasets/Photos", "--runs", "0", "-o", "out"]) == 2
    assert main(["explain", "lam", "only.yml", "--image", lr, "--steps", "2", "--window", "8"]) == 2
    assert main(["complexity", "only.yml"]) == 2
    options = yaml.safe_load(option_file.read_text()) | options | {"name": "only", "num_gpu": 0}
    option_file.write_text(yaml.safe_dump(options))
    assert main(["test", "-opt", str(option_file)]) == 2
    err = capsys.readouterr().err
    assert "error: only.yml: the network cannot take " in err
    assert "coffeex2.png: the network cannot take its " in err
    assert ".png: the network cannot take its " in err.splitlines()[-1]
    assert "Traceback" not in err


def test_train_and_test_import_it(place, option_file):
    """By the key `import` of the option file. The class is new, so no other test has imported it."""
    source = (place / "own_network.py").read_text().replace("OwnNetwork", "OtherNetwork")
    (place / "other.py").write_text(source)
    options = yaml.safe_load(option_file.read_text())
    options |= {"network_g": {"type": "OtherNetwork", "scale": 2}, "import": ["other.py"], "num_gpu": 0}
    options["path"] = {"pretrain_network_g": "own_network.pth"}
    option_file.write_text(yaml.safe_dump(options))
    assert main(["test", "-opt", str(option_file)]) == 0
    with open("results/small/scores.csv") as file:
        assert "small" in {row["method"] for row in csv.DictReader(file)}


def test_files_of_other_projects(place, capsys):
    """`**kwargs`, an unknown model, unknown sections; a bad file does not stop the others."""
    (place / "theirs.py").write_text(
        (place / "own_network.py")
        .read_text()
        .replace("OwnNetwork", "Theirs")
        .replace("scale: int = 2", "scale=2, **kw")
    )
    theirs = {
        "model_type": "TheirModel",
        "scale": 2,
        "network_g": {"type": "Theirs", "scale": 2, "img_size": 64},
        "path": {"pretrain_network_g": "own_network.pth", "root": "/nowhere"},
        "train": {"anything": "goes"},
    }
    (place / "theirs.yml").write_text(yaml.safe_dump(theirs))
    (place / "bad.yml").write_text("network_g: {type: Nobody}\nscale: 2\n")
    arguments = ["theirs.yml", "bad.yml", "--import", "theirs.py", "--runs", "0"]
    assert main(["benchmark", *arguments, "--data", "datasets/Photos", "-o", "out"]) == 2
    assert scored() == {"bicubic", "theirs"}
    err = capsys.readouterr().err
    assert "TheirModel" in err
    assert "bad.yml: network_g.type" in err
    assert main(["complexity", *arguments]) == 2
    out, err = capsys.readouterr()
    assert "theirs" in out
    assert "bad.yml" in err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "own.py"),
        ("import nothing_of_this_name", "own.py: ModuleNotFoundError"),
        ("def f(:", "own.py: SyntaxError"),
        ("raise SystemExit(3)", "own.py: SystemExit"),
        ("from basicsr.utils.registry import ARCH_REGISTRY as R\n@R.register()\nclass EDSR: pass", "EDSR"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, monkeypatch, content, named, capsys):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "own.py").write_text(content)
    assert main(["complexity", "Tiny", "--runs", "0", "--import", "own.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_published_figures_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, "Set5")
    monkeypatch.setenv("COLUMNS", "80")
    small_weights(tmp_path / "A.pth")
    arguments = ["A.pth", "--data", "Set5", "--runs", "0", "-o", "out", "--published"]
    assert main(["benchmark", *arguments]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "38.00/0.9605" in out  # IMDN on Set5 at x2
    assert "arXiv 2108.10257" in " ".join(out.split())
    assert "SAFMN" not in out  # its figures are of Urban100 alone
    page = (tmp_path / "out/x2.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    imdn = next(method for method in data["published"] if method["name"].startswith("IMDN"))
    assert imdn["means"]["Set5"] == {"psnr": 38.0, "ssim": 0.9605}
    assert (imdn["parameters"], imdn["macs"]) == (694_000, 158.8e9)
    (tmp_path / "Set5").rename("Mine")
    assert main(["benchmark", "A.pth", "--data", "Mine", *arguments[3:]]) == 0
    assert "Published figures: at ×2 there are none of these test sets." in capsys.readouterr().out


def test_a_row_of_ones_own_that_is_wrong_is_named(tmp_path, monkeypatch):
    header = "network,scale,params [K],multi-adds [G],Set5,source\n"
    (tmp_path / "peers.csv").write_text(f"{header}Mine,2,500,,38.0/0.96,mine\nYours,2,500,,38.0 0.96,yours\n")
    monkeypatch.setattr("dlgsanet.evaluation.published.resources.files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"peers\.csv: Yours, x2: "):
        peers(2, ["Set5"])


def test_every_published_row_is_within_the_range_of_its_kind_and_has_a_source():
    """A typing error in `peers.csv` gives a figure that no network of this kind has."""
    for scale in (2, 3, 4):
        for peer in peers(scale, ["Set5", "Set14", "B100", "Urban100", "Manga109"]):
            assert "arXiv" in peer.source or "github.com" in peer.source or "CVPR" in peer.source, peer
            assert 100e3 < peer.cost.get("parameters", 1e6) < 2e6, peer
            assert 1e9 < peer.cost.get("macs", 2e9) < 300e9, peer
            assert peer.means
            for dataset, scores in peer.means.items():
                best = figures("Large", scale)[dataset]
                assert best["psnr"] - 2.1 < scores["psnr"] < best["psnr"] + 0.2, (peer.name, dataset)
                assert best["ssim"] - 0.05 < scores.get("ssim", best["ssim"]) < best["ssim"] + 0.002, (
                    peer.name,
                    dataset,
                )


def test_imports_within_functions_and_no_others_are_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "imported_late"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "network.py").write_text(
        "import json, top\nfrom top import other\n"
        "def forward():\n    from .late import x\n    import imported_late.later"
    )
    for name in ("late", "later", "unused"):
        (package / f"{name}.py").write_text("x = 1")
    (tmp_path / "top.py").write_text("other = 1")
    (tmp_path / "other.py").write_text("")  # not what `from top import other` means
    importlib.import_module("imported_late.network")
    found = [str(path.relative_to(tmp_path)) for path in sources_of("imported_late.network")]
    names = ("__init__", "late", "later", "network")
    assert found == [*(f"imported_late/{name}.py" for name in names), "top.py"]
