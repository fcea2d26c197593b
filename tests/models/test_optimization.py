"""The optimizers that option files name."""

import pytest
import torch
from torch import nn

from dlgsanet.models.optimization import build_optimizer


def trained(network: nn.Module, options: dict[str, object]) -> list[torch.Tensor]:
    optimizer = build_optimizer(options, network)
    for step in range(3):
        for number, p in enumerate(network.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + number))
        optimizer.step()
    return [p.detach() for p in network.parameters()]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
@pytest.mark.parametrize("more", [{}, {"amsgrad": True}, {"weight_decay": 0.1}])
def test_adam_takes_one_call_on_a_cpu_with_the_usual_result(kind, more):
    options = {"type": kind, "lr": 0.01, "betas": [0.9, 0.99], **more}
    assert build_optimizer(options, network()).defaults["fused"]
    plain = trained(network(), options | {"foreach": False})
    for a, b in zip(trained(network(), options), plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chosen", [{"foreach": True}, {"fused": False}, {"differentiable": True}])
def test_what_an_option_file_chooses_is_kept(chosen):
    defaults = build_optimizer({"type": "Adam", **chosen}, network()).defaults
    assert not defaults["fused"]
    assert defaults.items() >= chosen.items()
