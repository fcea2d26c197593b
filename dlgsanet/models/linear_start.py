"""The linear start: a network that begins as the best linear filter, and not as noise.

From random weights a network needs many iterations to become as good as a linear filter, which can be computed: ridge
regression of the originals on 5x5 patches of the low-quality images. `start_linear` gives a DLGSANet the weights for
which it equals that filter. Its architecture, and so its names and shapes, do not change.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError

SIDE = 5  # of the filter: two 3x3 convolutions reach as far
RIDGE = 1e-5  # of the mean variance; the result hardly depends on it


def fit_filter(samples: Iterable[tuple[Tensor, Tensor]], scale: int, mean: Tensor) -> Tensor:
    """The 5x5 filter that enlarges the samples with the least squared error.

    Args:
        samples: pairs of an LQ image `[C, H, W]` and its original `[C, scale * H, scale * W]`.
        scale: factor of enlargement.
        mean: `[C]`, subtracted from both.

    Returns:
        float64 `[C * scale**2, C, 5, 5]`, to be followed by a pixel shuffle.
    """
    channels, mean = len(mean), mean[:, None, None]
    inputs = channels * SIDE**2
    covariance = torch.zeros(inputs, inputs, dtype=torch.float64)
    products = torch.zeros(channels * scale**2, inputs, dtype=torch.float64)
    edge = SIDE // 2
    for lq, gt in samples:
        x = F.unfold((lq - mean)[None], SIDE)[0].double()
        y = F.pixel_unshuffle(gt - mean, scale)[:, edge:-edge, edge:-edge].flatten(1).double()
        covariance += x @ x.T
        products += y @ x.T
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    return torch.linalg.solve(covariance, products.T).T.reshape(-1, channels, SIDE, SIDE)


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
    first, last = network.shallow, network.reconstruct.upsample[0]  # type: ignore[index]
    assert isinstance(last, nn.Conv2d)
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
