"""Muon: its mathematics, which parameters it updates as matrices, Adam for the others, and old states."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.models.muon import Muon, orthogonalize, split_parameters
from dlgsanet.models.optimization import build_optimizer


def network(**options) -> DLGSANet:
    torch.manual_seed(0)
    tiny = {"dim": 12, "groups": 1, "blocks": 1, "window_size": 3, "upsampler": "pixelshuffledirect", "upscale": 2}
    return DLGSANet(**tiny | {"buildblock_type": "sparseedge"} | options)


def give_gradients(net: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 144, 48), (1, 7, 7)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_become_about_one_and_their_vectors_stay(shape, scale):
    torch.manual_seed(0)
    given = torch.randn(shape) * scale
    result = orthogonalize(given)
    u, s, vh = torch.linalg.svd(result.double(), full_matrices=False)
    expected_u, _, expected_vh = torch.linalg.svd(given.double(), full_matrices=False)
    assert float(s.min()) > 0.3
    assert float(s.max()) < 1.3
    alignment = torch.einsum("bij,bij->b", u @ vh, expected_u @ expected_vh) / min(shape[1:])
    assert float(alignment.min()) > 0.999
    assert orthogonalize(torch.zeros(shape)).eq(0).all()


def names_of_matrices(net: nn.Module) -> set[str]:
    chosen = {id(p) for p in split_parameters(net)[0]}
    return {name for name, p in net.named_parameters() if id(p) in chosen}


@pytest.mark.parametrize("options", [{}, {"in_chans": 1}, {"upsampler": "pixelshuffle"}, {"body_norm": True}])
def test_inner_convolutions_are_matrices_whatever_the_image_and_the_ends(options):
    block = "groups.0.blocks.0."
    expected = {f"{block}mhdlsa.{name}" for name in ("proj_in", "squeeze", "filters", "proj_out")}
    expected |= {f"{block}{ffn}.{name}" for ffn in ("mhdlsa_ffn", "sparse_gsa_ffn") for name in ("proj_in", "proj_out")}
    expected |= {f"{block}sparse_gsa.qkv", f"{block}sparse_gsa.proj_out", "groups.0.conv", "conv"}
    if options.get("upsampler"):
        expected |= {"reconstruct.before.0", "reconstruct.upsample.0"}
    assert names_of_matrices(network(**options)) == {f"{name}.weight" for name in expected}


def test_linear_layers_are_matrices_and_tables_and_frozen_weights_are_not():
    from basicsr.archs.swinir_arch import SwinIR

    net = SwinIR(
        img_size=8, window_size=8, embed_dim=12, depths=[1], num_heads=[2], upscale=2, upsampler="pixelshuffle"
    )
    net.conv_after_body.requires_grad_(False)
    names = names_of_matrices(net)
    assert "layers.0.residual_group.blocks.0.attn.qkv.weight" in names
    assert not any("relative_position_bias_table" in name for name in names)
    assert not names & {"conv_first.weight", "conv_last.weight", "conv_after_body.weight"}
    both = [id(p) for part in split_parameters(net) for p in part]
    assert sorted(both) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_matrices_follow_the_definition():
    net = network()
    optimizer = Muon(*split_parameters(net), lr=0.02, momentum=0.9, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    momenta = {name: torch.zeros_like(p) for name, p in start.items()}
    expected = dict(start)
    for step in range(3):
        give_gradients(net, step)
        for name in names_of_matrices(net):
            p, gradient = expected[name], net.get_parameter(name).grad
            momenta[name] = 0.9 * momenta[name] + 0.1 * gradient
            ahead = (0.1 * gradient + 0.9 * momenta[name]).flatten(1)
            direction = orthogonalize(ahead[None])[0].view_as(p)
            expected[name] = p * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(ahead.shape) ** 0.5 * direction
        optimizer.step()
    for name in names_of_matrices(net):
        torch.testing.assert_close(net.get_parameter(name).detach(), expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_the_others_follow_adam_bit_by_bit(fused):
    ours, theirs = network(), network()
    muon = build_optimizer({"type": "Muon", "lr": 0.1, "adam_lr": 1e-3, "betas": [0.8, 0.95], "fused": fused}, ours)
    adam = torch.optim.Adam(theirs.parameters(), 1e-3, betas=(0.8, 0.95), fused=fused, foreach=not fused)
    for step in range(3):
        for net, optimizer in ((ours, muon), (theirs, adam)):
            give_gradients(net, step)
            optimizer.step()
    others = {name for name, _ in ours.named_parameters()} - names_of_matrices(ours)
    assert all(torch.equal(ours.get_parameter(name), theirs.get_parameter(name)) for name in others)


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_state_goes_on_bit_by_bit(fused):
    straight, resumed = network(), network()
    optimizer = Muon(*split_parameters(straight), fused=fused)
    for step in range(4):
        give_gradients(straight, step)
        optimizer.step()
        if step == 1:
            state, weights = deepcopy(optimizer.state_dict()), deepcopy(straight.state_dict())
    del state["param_groups"][0]["fused"]  # the first states that were written lack it
    resumed.load_state_dict(weights)
    restored = Muon(*split_parameters(resumed), lr=1.0, fused=fused)
    restored.load_state_dict(state)
    for step in (2, 3):
        give_gradients(resumed, step)
        restored.step()
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_parameters_without_gradient_stay_and_a_closure_is_called():
    net = network()
    before = deepcopy(net.state_dict())
    assert Muon(*split_parameters(net)).step(lambda: torch.tensor(3.0)) == 3.0
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"adam_lr": -1.0}, {"momentum": 1.0}, {"betas": [0.9, 1.0]}, {"steps": 0}, {"eps": -1.0}]
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Muon(*split_parameters(network()), **options)
