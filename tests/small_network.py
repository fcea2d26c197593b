"""A small network saved as a file, and a real photograph."""

import pytest
import skimage.data
import torch

from dlgsanet.archs.checkpoint import write_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet

SMALL = {
    "dim": 8, "groups": 1, "blocks": 1, "buildblock_type": "sparseedge", "window_size": 3, "idynamic_num_heads": 4,
    "restormer_num_heads": 2, "tlc_kernel": 24, "upsampler": "pixelshuffledirect", "upscale": 2,
}  # fmt: skip


def small_network(**options) -> DLGSANet:
    torch.manual_seed(0)
    network = DLGSANet(**SMALL | options).eval().requires_grad_(False)
    last = list(network.reconstruct.modules())[1:]
    for module in last:  # dull results within [0, 1], so that clipping hides nothing
        if hasattr(module, "weight"):
            module.weight.mul_(0.2)
    return network


def in_turn(network: DLGSANet, image: torch.Tensor) -> torch.Tensor:
    """``network(image)``, with its modules called in turn, which a hook asks for."""
    called = []
    hook = network.groups.register_forward_hook(lambda *_: called.append(1))
    try:
        return network(image)
    finally:
        hook.remove()
        assert called


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small_x2.safetensors"
    write_checkpoint(path, small_network().state_dict(), SMALL, {"scale": "2"})
    return path


@pytest.fixture(scope="session")
def network():
    return small_network()


@pytest.fixture(scope="session")
def photo():
    """RGB uint8 [60, 84, 3]: a part of a photograph."""
    return skimage.data.astronaut()[20:80, 180:264]
