"""Checkpoints: files are read back unchanged, options are detected, and bad files are refused in one line."""

import json
import os
import pickle
import sys
import zipfile

import pytest
import torch

from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint, write_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError

SMALL = {
    "dim": 12, "groups": 2, "blocks": 1, "buildblock_type": "sparseedge", "window_size": 3, "restormer_num_heads": 2,
    "tlc_kernel": 96, "upsampler": "pixelshuffledirect", "upscale": 2,
}  # fmt: skip

VARIANTS = {
    "x2": {},
    "x3 Large's expansion": {"upscale": 3, "tlc_kernel": 72, "idynamic_ffn_expansion_factor": 2.66},
    "x4 with norms": {"upscale": 4, "tlc_kernel": 48, "upsampler": "pixelshuffle", "body_norm": True},
    "x3 in stages": {"upscale": 3, "tlc_kernel": 72, "upsampler": "pixelshuffle", "blocks": 3},
    "x8 in stages": {"upscale": 8, "tlc_kernel": 48, "upsampler": "pixelshuffle"},
    "denoise gray": {"upscale": 1, "tlc_kernel": 48, "upsampler": "", "in_chans": 1},
    "static, base feed-forward": {"idynamic": False, "window_size": 5, "idynamic_ffn_type": "BaseFFN"},
    "local alone": {"buildblock_type": "idynamic", "blocks": 2},
    "global alone": {"buildblock_type": "restormer", "restormer_ffn_type": "BaseFFN"},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_network_follows_from_the_weights_alone(variant, tmp_path):
    options = SMALL | variant
    network = DLGSANet(**options).eval()
    write_checkpoint(tmp_path / "bare.pth", network.state_dict())
    loaded = build_network(read_checkpoint(tmp_path / "bare.pth"))
    found = network_options(read_checkpoint(tmp_path / "bare.pth"))
    for name in ("dim", "groups", "blocks", "upscale", "upsampler", "body_norm", "in_chans", "tlc_kernel"):
        assert found[name] == (options.get(name) or {"in_chans": 3, "body_norm": False, "upsampler": ""}[name])
    x = torch.rand(1, options.get("in_chans", 3), 13, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_options_and_metadata_are_read_back(name, tmp_path):
    options = SMALL | {"activation": "topk", "topk_ratio": 0.25, "tlc_kernel": 24}
    state = DLGSANet(**options).state_dict()
    write_checkpoint(tmp_path / name, state, {"type": "DLGSANet", **options}, {"date": "2026-01-01"})
    checkpoint = read_checkpoint(tmp_path / name)
    assert network_options(checkpoint).items() >= options.items()
    assert checkpoint.metadata["date"] == "2026-01-01"
    assert checkpoint.state.keys() == state.keys()
    assert all(torch.equal(checkpoint.state[k], v) for k, v in state.items())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_averaged_weights_are_preferred_and_module_prefixes_dropped(tmp_path):
    state = DLGSANet(**SMALL).state_dict()
    averaged = {f"module.{k}": v + 1 for k, v in state.items()}
    torch.save({"params": state, "params_ema": averaged}, tmp_path / "both.pth")
    name = next(iter(state))
    assert torch.equal(read_checkpoint(tmp_path / "both.pth").state[name], state[name] + 1)
    assert torch.equal(read_checkpoint(tmp_path / "both.pth", "params").state[name], state[name])
    torch.save({"params": state}, tmp_path / "one.pth")
    with pytest.raises(UserError, match="params_ema"):
        read_checkpoint(tmp_path / "one.pth", "params_ema")


def test_a_bare_state_dict_and_the_old_format_are_read(tmp_path):
    state = DLGSANet(**SMALL).state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert network_options(read_checkpoint(tmp_path / "old.pth"))["dim"] == 12


def wrapped(state, prefix, **more):
    return {f"{prefix}{name}": value for name, value in state.items()} | more


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"weights": state},
        lambda state: {"checkpoint": state, "optimizer": {}},
        lambda state: wrapped(state, "net_g."),
        lambda state: wrapped(state, "module._orig_mod."),
        lambda state: {"params": wrapped(state, "_orig_mod.")},
        lambda state: {  # Lightning
            "state_dict": wrapped(state, "model.", **{"loss.vgg.weight": torch.ones(2)}),
            "pytorch-lightning_version": "2.5.0",
            "optimizer_states": [],
        },
        lambda state: {  # OpenMMLab
            "meta": {"epoch": 1},
            "state_dict": wrapped(state, "generator.", step_counter=torch.ones(1, dtype=torch.int64)),
        },
    ],
)
def test_files_of_wrappers_are_read(tmp_path, content):
    state = DLGSANet(**SMALL).state_dict()
    torch.save(content(state), tmp_path / "wrapped.pth")
    network = build_network(read_checkpoint(tmp_path / "wrapped.pth"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_averaged_weights_of_a_wrapper_come_first(tmp_path):
    state = DLGSANet(**SMALL).state_dict()
    averaged = {name: value + 1 for name, value in state.items()}
    both = wrapped(state, "generator.") | wrapped(averaged, "generator_ema.")
    for content in ({"state_dict": both}, {"model": state, "ema": averaged}):
        torch.save(content, tmp_path / "a.pth")
        name = next(iter(state))
        assert torch.equal(read_checkpoint(tmp_path / "a.pth").state[name], averaged[name])


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def scripted(folder):
    torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(folder / "made.pt")
    return (folder / "made.pt").read_bytes()


def bomb(folder):
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return (folder / "made.zip").read_bytes()


def _files(folder):
    """Bad files: name -> (content, what the message names apart from the file)."""
    state = DLGSANet(**SMALL).state_dict()

    def saved(content, suffix=".pth", **kwargs):
        path = folder / f"made{suffix}"
        if suffix == ".pth":
            torch.save(content, path, **kwargs)
        else:
            write_checkpoint(path, content, **kwargs)
        return path.read_bytes()

    whole, whole_st = saved(state), saved(state, ".safetensors", options=SMALL)
    first = "overlap_embed.0.proj.weight"
    some = {k: v for k, v in state.items() if "norm2" not in k}
    return {
        "empty": (b"", ""),
        "options.yml": (b"scale: 2", "an option file"),
        "text": (b"hello, world, no weights here", ""),
        "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "picture"),
        "cut.pth": (whole[: len(whole) // 2], ""),
        "cut.safetensors": (whole_st[: len(whole_st) // 2], ""),
        "code.pth": (pickle.dumps(Malicious()), ""),
        "code_inside.pth": (saved({"params": state, "x": Malicious()}), ""),
        "list.pth": (saved([1, 2]), "list"),
        "no_weights.pth": (saved({}), ""),
        "numbers.pth": (saved({"params": {"a": 1}}), "a "),
        "integers.pth": (saved({"a": torch.ones(3, dtype=torch.int)}), "a "),
        "training.state": (saved({"optimizers": [], "epoch": 3}), "models/net_g_"),
        "other_network.pth": (saved({"conv_first.weight": torch.ones(8, 3, 3, 3)}), "DLGSANet"),
        "nan.pth": (saved(state | {first: state[first] * float("nan")}), first),
        "missing.pth": (saved(some), "mhdlsa_ffn.norm"),
        "extra.pth": (saved(state | {"spare.weight": torch.ones(1)}), "spare.weight"),
        "other_shape.pth": (saved(state | {first: torch.ones(18, 3, 3, 3)}), "mhdlsa.norm.weight"),
        "flat.pth": (saved(state | {first: torch.ones(7)}), ""),
        "script.pth": (scripted(folder), "TorchScript"),
        "bomb.pth": (bomb(folder), ""),
        "page.pth": (b"<!DOCTYPE html><html>", "web page"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        "whole_network.pth": (saved(DLGSANet(**SMALL)), "DLGSANet"),
        "repeated.pth": (saved({first: torch.ones(1).expand(1 << 30)}), first),
        "lies": (saved(state, ".safetensors", options=SMALL | {"dim": 60}), "dim is 60"),
        "huge": (saved(state, ".safetensors", options=SMALL | {"groups": 10**12}), "groups"),
        "unknown": (saved(state, ".safetensors", options=SMALL | {"depth": 3}), "depth"),
        "impossible": (saved(state, ".safetensors", options=SMALL | {"activation": "swish"}), "activation"),
        "not_json": (saved(state, ".safetensors", metadata={"network_g": "{dim:"}), ""),
        "not_a_table": (saved(state, ".safetensors", metadata={"network_g": json.dumps([1])}), "network_g"),
    }


def test_bad_files_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (content, message) in _files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            build_network(read_checkpoint(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert message in str(caught.value), f"{name}: {caught.value}"
    assert not (tmp_path / "ran").exists()


def test_a_missing_package_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a.safetensors", DLGSANet(**SMALL).state_dict())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="safetensors") as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert "damaged" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_checkpoint(path)


def test_nothing_half_written(tmp_path):
    state = DLGSANet(**SMALL).state_dict()
    with pytest.raises(UserError, match=r"weights\.onnx"):
        write_checkpoint(tmp_path / "weights.onnx", state)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match=r"folder\.pth"):
        write_checkpoint(tmp_path / "folder.pth", state)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.pth"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_network_stays_as_it_is_when_its_file_is_overwritten(tmp_path, name):
    network = DLGSANet(**SMALL)
    write_checkpoint(tmp_path / name, network.state_dict(), SMALL)
    loaded = build_network(read_checkpoint(tmp_path / name))
    (tmp_path / name).write_bytes(bytes((tmp_path / name).stat().st_size))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
