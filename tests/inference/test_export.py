"""Export and conversion: other programs get the same network."""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dlgsanet import load_model
from dlgsanet.archs.checkpoint import network_options, read_checkpoint, write_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.portable import PortableDLGSANet
from dlgsanet.cli import main
from dlgsanet.errors import UserError
from dlgsanet.inference import export as export_module
from dlgsanet.ops.windows import TracedWindows, window_starts
from tests.small_network import SMALL, small_network


@pytest.mark.parametrize("window", [5, 24])
def test_windows_in_symbols_are_those_of_the_network(window):
    for size in [*range(1, 160), *(window * n + r for n in (51, 96, 98) for r in (0, 1, window - 1))]:
        windows, starts = TracedWindows(size, window), window_starts(size, window)
        assert windows.starts.tolist() == starts
        values = torch.rand(windows.count, windows.side, dtype=torch.float64)
        total, count = torch.zeros(2, size, dtype=torch.float64)
        for start, row in zip(starts, values, strict=True):
            total[start : start + windows.side] += row
            count[start : start + windows.side] += 1
        torch.testing.assert_close(windows.join(values, 0), total / count)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "topk", "topk_ratio": 0.5, "body_norm": True, "upsampler": "pixelshuffle", "upscale": 4},
        {"idynamic": False, "idynamic_ffn_type": "BaseFFN", "tlc_flag": False, "restormer_ffn_type": "BaseFFN"},
        {"buildblock_type": "restormer", "img_range": 255.0},
        {"buildblock_type": "idynamic", "in_chans": 1},
    ],
)
def test_the_portable_network_is_the_network(options):
    network = small_network(**options)
    image = torch.rand(2, options.get("in_chans", 3), 61, 40)
    torch.testing.assert_close(PortableDLGSANet(network)(image), network(image), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """A function from a file's name to the file, each made once; files named half.* are in fp16."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def make(name):
        precision = "fp16" if name.startswith("half") else "fp32"
        for package in ("onnx", "onnxscript", "onnxruntime") if name.endswith("onnx") else ():
            pytest.importorskip(package)
        arguments = ["export", "--weights", str(weights), "--precision", precision]
        assert main([*arguments, "-o", str(folder / name)]) == 0
        return folder / name

    return make


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.onnx", 1e-4),
        ("a.pt2", 1e-4),
        pytest.param("half.onnx", 5e-3, marks=pytest.mark.long),
        pytest.param("half.pt2", 5e-3, marks=pytest.mark.long),
    ],
)
def test_exported_files_run_at_every_size(exported, network, name, tolerance):
    content = exported(name).read_bytes()
    run = (export_module._run_onnx if name.endswith("onnx") else export_module._run_pt2)(content)
    for size in [(1, 1), (7, 90), (24, 24), (25, 23), (49, 101)]:
        image = torch.rand(1, 3, *size)
        assert np.abs(run(image.numpy()) - network(image).numpy()).max() < tolerance, size


def test_onnx_needs_no_custom_operators_and_holds_its_options(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("a.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {p.key: p.value for p in model.metadata_props}["scale"] == "2"


def test_openvino_runs_it_too(exported, network):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(exported("a.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = torch.rand(1, 3, 49, 101)
    assert np.abs(compiled(image.numpy())[0] - network(image).numpy()).max() < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("extension", ["onnx", "pt2"])
def test_the_included_weights_are_exported(extension, precision, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime") if extension == "onnx" else ():
        pytest.importorskip(package)
    path = tmp_path / f"tiny_x4.{extension}"  # checked by the command itself, over five sizes
    arguments = ["--weights", "Tiny", "--scale", "4", "--precision", precision]
    assert main(["export", *arguments, "-o", str(path)]) == 0
    assert path.stat().st_size < 6e6
    if extension == "onnx":  # the time that export takes grows with the number of operations
        import onnx

        assert len(onnx.load(path).graph.node) < 2000


def test_a_pt2_does_not_need_this_package(exported):
    code = (
        "import sys, torch; m = torch.export.load('a.pt2').module(); "
        "assert m(torch.rand(1, 3, 30, 50)).shape[3] == 100; sys.exit('dlgsanet' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    folder = exported("a.pt2").parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=False).returncode == 0


def test_an_export_that_differs_is_not_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_run_pt2", lambda content: lambda image: np.zeros((1, 3, 1, 1), np.float32))
    with pytest.raises(UserError, match=r"a\.pt2"):
        export_module.export(network, tmp_path / "a.pt2")
    with pytest.raises(UserError, match=r"a\.bin"):
        export_module.export(network, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_found_before_the_network_is_traced(network, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_trace", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.pt2"):
        export_module.export(network, tmp_path / "file/a.pt2")


def test_weights_go_both_ways_unchanged(weights, tmp_path):
    steps = [weights, tmp_path / "b.pth", tmp_path / "c.safetensors"]
    for source, target in itertools.pairwise(steps):
        assert main(["convert", str(source), str(target), "--metadata", "license=CC0"]) == 0
    first, last = read_checkpoint(steps[0]), read_checkpoint(steps[2])
    assert first.state.keys() == last.state.keys()
    assert all(torch.equal(first.state[k], last.state[k]) for k in first.state)
    assert network_options(first) == network_options(last)
    assert (last.metadata["license"], last.metadata["scale"]) == ("CC0", "2")
    published = torch.load(steps[1], weights_only=True)["params"]  # as the published code reads it
    DLGSANet(**SMALL).load_state_dict(published, strict=True)


def test_weights_are_averaged(weights, tmp_path):
    state = read_checkpoint(weights).state
    write_checkpoint(tmp_path / "b.safetensors", {name: value + 1 for name, value in state.items()}, SMALL)
    arguments = ["convert", str(weights), str(tmp_path / "c.safetensors"), "--average"]
    assert main([*arguments, f"{tmp_path}/b.safetensors=0.25"]) == 0
    mixed = read_checkpoint(tmp_path / "c.safetensors")
    assert all(torch.allclose(mixed.state[name], state[name] + 0.25) for name in state)
    assert mixed.metadata["average"].startswith("0.25 of ")


def test_the_same_weights_of_both_files_are_averaged(weights, tmp_path):
    state = read_checkpoint(weights).state
    later = {name: value + 1 for name, value in state.items()}
    torch.save({"params": state, "params_ema": later}, tmp_path / "a.pth")
    arguments = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "c.safetensors"), "--key", "params"]
    assert main([*arguments, "--average", f"{tmp_path}/a.pth=0.5"]) == 0
    mixed = read_checkpoint(tmp_path / "c.safetensors").state
    assert all(torch.equal(mixed[name], state[name]) for name in state)


@pytest.mark.parametrize("extension", [".pth", ".safetensors"])
def test_metadata_with_names_that_are_not_utf8(weights, tmp_path, extension):
    other = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    shutil.copy(weights, other)
    source, target = tmp_path / f"a{extension}", tmp_path / "b.safetensors"
    more = ["--average", f"{other}=0.5", "--metadata", os.fsdecode(b"by=caf\xe9")]
    assert main(["convert", str(weights), str(source), *more]) == 0
    assert main(["convert", str(source), str(target)]) == 0
    metadata = read_checkpoint(target).metadata
    assert metadata["average"].endswith("e9.safetensors")
    assert metadata["by"].startswith("caf\\")


def test_an_option_file_adds_what_weights_do_not_show(tmp_path):
    options = SMALL | {"buildblock_type": "edge", "tlc_kernel": 16}
    write_checkpoint(tmp_path / "a.pth", small_network(**options).state_dict())
    (tmp_path / "a.yml").write_text(f"network_g: {json.dumps({'type': 'DLGSANet', **options})}")
    arguments = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]
    assert main([*arguments, "-opt", str(tmp_path / "a.yml")]) == 0
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(load_model(tmp_path / "a.safetensors")(image), small_network(**options)(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", "b.pth"], "none.pth"),
        (["{weights}", "b.onnx"], "b.onnx"),
        (["{weights}", "b.pth", "--metadata", "x"], "--metadata: 'x'"),
        (["{weights}", "b.pth", "--metadata", "scale=9"], "--metadata: scale"),
        (["{weights}", "b.pth", "--metadata", "network_g=x"], "--metadata: network_g"),
        (["{weights}", "b.pth", "--average", "{weights}"], "--average: "),
        (["{weights}", "b.pth", "--average", "{weights}=1.5"], "--average: "),
        (["{weights}", "b.pth", "--average", "none.pth=0.5"], "none.pth"),
        (["{weights}", "b.pth", "--average", "other.pth=0.5"], "other.pth: its weights are of another network"),
        (["{weights}", "b.pth", "--average", "part.pth=0.5"], "part.pth: does not fit the network: Missing key"),
        (["{weights}", "b.pth", "-opt", "none.yml"], "-opt: none.yml"),
        (["{weights}", "b.pth", "-opt", "deep.yml"], "-opt: deep.yml"),
        (["{weights}", "b.pth", "-opt", "list.yml"], "list.yml"),
        (["own.pth", "b.pth", "-opt", "own.yml"], "-opt: own.yml: its network is OwnNetwork"),
    ],
)
def test_conversions_that_fail(weights, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yml").write_text("- 1")
    (tmp_path / "own.yml").write_text("network_g: {type: OwnNetwork}")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "own.pth")
    (tmp_path / "deep.yml").write_text("[" * 3000)
    part = dict([*small_network().state_dict().items()][:-1])
    write_checkpoint(tmp_path / "part.pth", part, SMALL, {"scale": "2"})
    write_checkpoint(tmp_path / "other.pth", small_network(**SMALL | {"blocks": 2}).state_dict())
    arguments = [a.format(weights=weights) for a in arguments]
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "b.pth").exists()


def test_spandrel_detects_and_loads_ours_and_published_files(weights, network, tmp_path):
    pytest.importorskip("einops")
    spandrel = pytest.importorskip("spandrel")
    from dlgsanet.inference.spandrel_arch import register

    register()
    register()
    options = SMALL | {"tlc_kernel": 96, "body_norm": True, "upsampler": "pixelshuffle"}
    torch.save({"params_ema": small_network(**options).state_dict()}, tmp_path / "published.pth")
    state = read_checkpoint(weights).state
    published = small_network(**SMALL | {"tlc_kernel": 96})  # does not follow from shapes
    published.load_state_dict(state)
    for path, wanted in [(weights, published), (tmp_path / "published.pth", small_network(**options))]:
        if path.suffix == ".pth":  # BasicSR's adaptation makes torch.load refuse the pickle module of spandrel
            model = spandrel.ModelLoader().load_from_state_dict(torch.load(path, weights_only=True))
        else:
            model = spandrel.ModelLoader().load_from_file(path)
        assert (model.architecture.id, model.scale, model.input_channels) == ("DLGSANet", 2, 3)
        image = torch.rand(1, 3, 100, 30)
        torch.testing.assert_close(model(image), wanted(image).clamp(0, 1), rtol=0, atol=1e-6)


def test_export_shows_its_stages_and_that_it_goes_on(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dlgsanet.progress.EVERY", 0.05)
    monkeypatch.setattr(export_module, "_trace", lambda *_: time.sleep(0.5))
    monkeypatch.setattr(export_module, "_pt2", lambda program: b"")
    monkeypatch.setattr(export_module, "_run_pt2", lambda content: None)
    monkeypatch.setattr(export_module, "check", lambda network, run: 0.0)
    assert main(["export", "--weights", str(weights), "-o", str(tmp_path / "a.pt2")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len({line.split(" ...")[0] for line in lines}) >= 4
    assert len(lines) > 4
