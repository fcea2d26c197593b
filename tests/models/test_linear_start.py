"""The linear start: the network equals its filter, and the filter is better than bicubic interpolation."""

import pytest
import torch
import torch.nn.functional as F

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.data.resize import downscale, imresize
from dlgsanet.errors import UserError
from dlgsanet.metrics import psnr
from dlgsanet.models.linear_start import fit_filter, start_linear


def network(scale: int, **options) -> DLGSANet:
    torch.manual_seed(0)
    size = {"dim": 48, "groups": 1, "blocks": 1, "window_size": 7, "buildblock_type": "sparseedge"}
    return DLGSANet(**size | {"upsampler": "pixelshuffledirect", "upscale": scale} | options)


def pair(image, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LQ and GT of a photograph, [3, H, W] in [0, 1]."""
    lq = downscale(image, scale)
    gt = image[: len(lq) * scale, : lq.shape[1] * scale]
    return tuple(torch.from_numpy(one.copy()).permute(2, 0, 1) / 255 for one in (lq, gt))


@pytest.mark.parametrize("options", [{}, {"dim": 12}, {"img_range": 255.0}, {"body_norm": True}, {"dim": 90}])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_network_is_the_filter_and_better_than_bicubic(photograph, scale, options):
    skimage = pytest.importorskip("skimage.data")
    net = network(scale, **options)
    names = {name: tensor.shape for name, tensor in net.state_dict().items()}
    mean = torch.tensor(net.mean)
    filters = fit_filter([pair(image, scale) for image in (skimage.coffee(), skimage.astronaut())], scale, mean)
    start_linear(net, filters)
    lq, gt = pair(photograph, scale)
    with torch.inference_mode():
        output = net.eval()(lq[None])[0]
    centred = (lq - mean[:, None, None])[None].double()
    expected = F.pixel_shuffle(F.conv2d(centred, filters, padding=2), scale)[0] + mean[:, None, None]
    inside = slice(2 * scale, -2 * scale)
    difference = (output.double() - expected)[:, inside, inside].abs().max()
    assert difference < 1e-5
    enlarged, original = (t.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy() for t in (output, gt))
    bicubic = imresize(downscale(photograph, scale), scale)
    border = 3 * scale
    assert psnr(enlarged, original, border) > psnr(bicubic, original, border) + 0.2
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == names
    first = network(scale, **options).shallow.weight
    assert torch.equal(net.shallow.weight, first)


def test_too_few_channels_are_refused():
    with pytest.raises(UserError, match=r"train.network_init.* dim 6"):
        start_linear(network(2, dim=6), torch.rand(12, 3, 5, 5, dtype=torch.float64))
