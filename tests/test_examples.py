"""The examples in docs/examples work as they say."""

import pytest
import torch

from dlgsanet.data.images import read_image
from dlgsanet.extensions import import_all
from dlgsanet.metrics import psnr
from dlgsanet.models.weights import load_weights
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def smfanet():
    import_all([str(REPOSITORY / "docs/examples/smfanet.py")])
    from basicsr.utils.registry import ARCH_REGISTRY

    return ARCH_REGISTRY.get("SMFANet")


@pytest.mark.parametrize(("scale", "published"), [(2, 38.18), (3, 34.66), (4, 32.51)])
def test_published_smfanet_weights_load_and_reach_their_figures(smfanet, shared_data, scale, published):
    weights = shared_data / f"data/teachers/SMFANetplus_DF2K_x{scale}.pth"
    if not weights.exists():
        pytest.skip(f"there is no {weights}")
    network = smfanet(upscaling_factor=scale)
    load_weights(network, weights)
    network.eval()
    scores = []
    for hr_path in sorted((shared_data / "data/benchmark/Set5/HR").iterdir()):
        lr = read_image(shared_data / f"data/benchmark/Set5/LR_bicubic/X{scale}/{hr_path.stem}x{scale}.png")
        with torch.inference_mode():
            sr = network(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)[0]
        image = sr.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        hr = read_image(hr_path)[: image.shape[0], : image.shape[1]]
        scores.append(psnr(image, hr, crop_border=scale))
    assert sum(scores) / 5 == pytest.approx(published, abs=0.04)


def test_smfanet_takes_any_size(smfanet):
    assert smfanet(dim=8, n_blocks=1, upscaling_factor=3)(torch.rand(1, 3, 5, 9)).shape == (1, 3, 15, 27)
