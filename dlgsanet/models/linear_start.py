"""Weights that can be computed, by ridge regression, and need not be trained. Names and shapes do not change.

The linear start: from random weights a network needs many iterations to become as good as a linear filter, the
regression of the originals on 5x5 patches of the low-quality images. `start_linear` gives a DLGSANet the weights for
which it equals that filter.

The last convolution: the weights of another scale have no last convolution for this one. `fit_last_convolution` is the
regression of the originals on the features that it reads.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError

SIDE = 5  # of the filter: two 3x3 convolutions reach as far
RIDGE = 1e-5  # of an input's power; the result hardly depends on it
ENOUGH_SAMPLES = 100  # for the last convolution: patches of 64x64 are 400,000 equations for some 430 weights


def fit_filter(samples: Iterable[tuple[Tensor, Tensor]], scale: int, mean: Tensor) -> Tensor:
    """The 5x5 filter that enlarges the samples with the least squared error.

    Args:
        samples: pairs of an LQ image `[C, H, W]` and its original `[C, scale * H, scale * W]`.
        scale: factor of enlargement.
        mean: `[C]`, subtracted from both.

    Returns:
        float64 `[C * scale**2, C, 5, 5]`, to be followed by a pixel shuffle.
    """
    mean, edge = mean[:, None, None], SIDE // 2

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for lq, gt in samples:
            wanted = F.pixel_unshuffle(gt - mean, scale)[:, edge:-edge, edge:-edge]
            yield F.unfold((lq - mean)[None], SIDE)[0], wanted.flatten(1)

    return _regression(pairs()).reshape(-1, len(mean), SIDE, SIDE)


def _regression(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The matrix [outputs, inputs] in float64 that maps inputs [inputs, n] to outputs [outputs, n] best."""
    covariance = products = torch.zeros((), dtype=torch.float64)
    for inputs, outputs in pairs:
        x = inputs.double()
        covariance = covariance + x @ x.T
        products = products + outputs.double() @ x.T
    power = covariance.diagonal()
    ridge = RIDGE * torch.diag(power.clamp_min(RIDGE * power.mean()))  # an input may be 0 everywhere
    return torch.linalg.solve(covariance + ridge, products.T).T


@torch.no_grad()
def fit_last_convolution(network: DLGSANet, samples: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the last convolution to the one with the least squared error on the samples.

    Args:
        network: with `upsampler: pixelshuffledirect`.
        samples: pairs of an LQ image `[C, H, W]` and its original `[C, scale * H, scale * W]`; the first
            `ENOUGH_SAMPLES` count.

    Raises:
        UserError: what it reads is not finite.
    """
    last = _last_convolution(network)
    mean = torch.tensor(network.mean)[:, None, None]
    read: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for lq, gt in islice(samples, ENOUGH_SAMPLES):
            network(lq[None].to(last.weight.device))
            columns = F.unfold(read.pop().float().cpu(), 3, padding=1)[0]
            wanted = F.pixel_unshuffle((gt - mean) * network.img_range, network.upscale)
            yield torch.cat([columns, torch.ones(1, columns.shape[1])]), wanted.flatten(1)

    try:
        fitted = _regression(pairs())
    finally:
        hook.remove()
    if not fitted.isfinite().all():
        raise UserError("path.pretrain_network_g: its features are not finite or too large; give other weights")
    last.weight.copy_(fitted[:, :-1].reshape(last.weight.shape))
    assert last.bias is not None
    last.bias.copy_(fitted[:, -1])


def _last_convolution(network: DLGSANet) -> nn.Conv2d:
    last = network.reconstruct.upsample[0]  # type: ignore[index]
    assert isinstance(last, nn.Conv2d)
    return last


def start_linear(network: DLGSANet, filters: Tensor) -> None:
    """Set the weights for which the network equals a filter, except in the two pixels next to the border.

    The first convolution keeps its random weights. The last gets the solution of least norm for which both together are
    the filter, and no bias. The convolution after the groups becomes 0, so that the groups do not contribute yet.

    Args:
        network: with `upsampler: pixelshuffledirect`.
        filters: of `fit_filter`, for the network's mean.

    Raises:
        UserError: the first convolution has too few channels for such a solution.
    """
    first, last = network.shallow, _last_convolution(network)
    composition = _composition(first.weight.detach().double().cpu())
    wanted = filters.flatten(1).T
    solution = torch.linalg.lstsq(composition, wanted, driver="gelsd").solution
    if not (composition @ solution - wanted).abs().max() < 1e-6:
        raise UserError(f"train.network_init: linear needs more channels than dim {first.out_channels}")
    with torch.no_grad():
        last.weight.copy_(solution.T.reshape(last.weight.shape))
        for parameter in (last.bias, network.conv.weight, network.conv.bias):
            parameter.zero_()  # type: ignore[union-attr]


def _composition(first: Tensor) -> Tensor:
    """The linear map from the weights `[dim, 3, 3]` of a second convolution to the filter `[C, 5, 5]` of both.

    Args:
        first: weights of the first convolution, `[dim, C, 3, 3]`.

    Returns:
        `[C * 25, dim * 9]`.
    """
    dim, channels = first.shape[:2]
    composed = first.new_zeros(channels, SIDE, SIDE, dim, 3, 3)
    for row in range(3):
        for column in range(3):
            composed[:, row : row + 3, column : column + 3, :, row, column] = first.permute(1, 2, 3, 0)
    return composed.reshape(channels * SIDE**2, dim * 9)
