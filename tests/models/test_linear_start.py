"""Weights that are computed: the linear start, and the last convolution for the body of another scale."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dlgsanet.archs.checkpoint import read_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sizes import size_options
from dlgsanet.data.resize import downscale, imresize
from dlgsanet.errors import UserError
from dlgsanet.inference.weights import find_weights
from dlgsanet.metrics import psnr
from dlgsanet.models.linear_start import fit_filter, fit_last_convolution, start_linear


def network(scale: int, **options) -> DLGSANet:
    torch.manual_seed(0)
    size = {"dim": 48, "groups": 1, "blocks": 1, "window_size": 7, "buildblock_type": "sparseedge"}
    return DLGSANet(**size | {"upsampler": "pixelshuffledirect", "upscale": scale} | options)


def pair(image, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LQ and GT of a photograph, [3, H, W] in [0, 1]."""
    lq = downscale(image, scale)
    gt = image[: len(lq) * scale, : lq.shape[1] * scale]
    return tuple(torch.from_numpy(one.copy()).permute(2, 0, 1) / 255 for one in (lq, gt))


def above_bicubic(output: torch.Tensor, gt: torch.Tensor, image: np.ndarray, scale: int) -> float:
    """dB, without the pixels next to the border."""
    enlarged, original = (t.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy() for t in (output, gt))
    bicubic = imresize(downscale(image, scale), scale)
    return psnr(enlarged, original, 3 * scale) - psnr(bicubic, original, 3 * scale)


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
    assert above_bicubic(output, gt, photograph, scale) > 0.2
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == names
    first = network(scale, **options).shallow.weight
    assert torch.equal(net.shallow.weight, first)


def test_too_few_channels_are_refused():
    with pytest.raises(UserError, match=r"train.network_init.* dim 6"):
        start_linear(network(2, dim=6), torch.rand(12, 3, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"img_range": 255.0}, {"dim": 12, "in_chans": 1}])
def test_last_convolution_is_found_again(options):
    net = network(2, **options)
    names = {name: tensor.shape for name, tensor in net.state_dict().items()}
    image, *images = (torch.rand(1, options.get("in_chans", 3), 24, 31) for _ in range(9))
    with torch.no_grad():
        wanted, samples = net(image), [(image[0], net(image)[0]) for image in images]
        for parameter in net.reconstruct.parameters():
            parameter.normal_()
        fit_last_convolution(net, samples)
        assert (net(image) - wanted).abs().max() < 0.005 * wanted.std()
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == names
    assert not net.reconstruct.upsample[0]._forward_pre_hooks


@pytest.mark.parametrize("scale", [3, 4])
def test_body_of_x2_enlarges_by_other_factors(photograph, scale):
    skimage = pytest.importorskip("skimage.data")
    net = DLGSANet(**size_options("Tiny", scale)).eval()
    state = read_checkpoint(find_weights("Tiny", 2)).state
    body = {name: tensor for name, tensor in state.items() if net.state_dict()[name].shape == tensor.shape}
    net.load_state_dict(body, strict=False)
    fit_last_convolution(net, [pair(image, scale) for image in (skimage.coffee(), skimage.astronaut())])
    lq, gt = pair(photograph, scale)
    with torch.inference_mode():
        assert above_bicubic(net(lq[None])[0], gt, photograph, scale) > 0.5
