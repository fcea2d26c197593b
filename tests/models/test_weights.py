"""Loading published checkpoints into a network, and the messages for those that do not fit."""

import pytest
import torch
from safetensors.torch import save_file

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError
from dlgsanet.models.weights import load_weights


def network(dim: int = 12, upscale: int = 2, seed: int = 0) -> DLGSANet:
    torch.manual_seed(seed)
    return DLGSANet(dim=dim, groups=1, blocks=1, window_size=3, upsampler="pixelshuffledirect", upscale=upscale)


def same(a: DLGSANet, b: DLGSANet) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("form", ["params", "params_ema", "bare", "safetensors"])
def test_every_published_form_loads(tmp_path, form):
    source, other, target = network(seed=1), network(seed=2), network(seed=3)
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pth")
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    else:
        averaged = {"params": other.state_dict(), "params_ema": source.state_dict()}
        torch.save({"params": averaged, "bare": source.state_dict()}.get(form, averaged), path)
    load_weights(target, path, form if form.startswith("params") else None)
    assert same(target, other if form == "params" else source)


def test_another_size_is_named_with_the_first_weights_that_differ(tmp_path):
    torch.save({"params": network(upscale=4).state_dict()}, tmp_path / "x4.pth")
    with pytest.raises(UserError) as error:
        load_weights(network(), tmp_path / "x4.pth")
    message = str(error.value)
    assert "x4.pth: its weights do not fit network_g: upsample.0.weight is [48, 12, 3, 3] in the file" in message
    assert "\n" not in message


def test_missing_and_foreign_weights_are_named(tmp_path):
    state = network().state_dict()
    state["surplus.weight"] = state.pop("upsample.0.bias")
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"upsample.0.bias is missing in the file; surplus.weight is not of this"):
        load_weights(network(), tmp_path / "net.pth")


def test_without_strict_what_fits_is_loaded_and_the_rest_is_reported(tmp_path, caplog):
    source, target, untouched = network(upscale=4, seed=1), network(seed=2), network(seed=2)
    torch.save({"params": source.state_dict()}, tmp_path / "x4.pth")
    load_weights(target, tmp_path / "x4.pth", strict=False)
    assert torch.equal(target.shallow.weight, source.shallow.weight)
    assert same(target.reconstruct, untouched.reconstruct)
    assert "loaded in part: upsample.0.weight" in caplog.text
