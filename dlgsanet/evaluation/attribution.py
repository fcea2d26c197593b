"""Local attribution maps: how much each input pixel contributes to detail of the output (Gu and Dong, CVPR 2021).

The strength of edges in a window of the output is differentiated with respect to the input. The gradient is integrated
along a path of inputs from a blurred image to the image itself. Detail is therefore attributed, not brightness.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet.errors import NOT_FINITE, UserError
from dlgsanet.evaluation.memory import enough_memory

SIGMA = 1.2  # LR pixels, of the Gaussian blur that the path starts from


@dataclass(frozen=True)
class Attribution:
    """The local attribution map of one window of the output.

    Attributes:
        map: [H, W], the signed contribution of each LR pixel, summed over its channels.
        output: [3, scale * H, scale * W], the output of the network.
        gain: edge strength of the window for the image, minus that for the blurred image. The map sums to it, apart
            from the error of a finite number of steps.
    """

    map: np.ndarray
    output: np.ndarray
    gain: float

    @property
    def diffusion_index(self) -> float:
        """(1 - Gini index of the absolute map) * 100: 0 if one pixel contributes, 100 if all contribute equally."""
        shares = np.sort(np.abs(self.map).ravel())
        if not shares.any():
            return 100.0
        count = shares.size
        gini = 1 - 2 * np.sum(shares / shares.sum() * (count - np.arange(1, count + 1) + 0.5)) / count
        return float((1 - gini) * 100)


def attribute(
    network: nn.Module,
    image: Tensor,
    x: int,
    y: int,
    window: int = 16,
    steps: int = 50,
    done: Callable[[], None] = lambda: None,
) -> Attribution:
    """The local attribution map of a window of the output.

    Args:
        network: in evaluation mode.
        image: [1, 3, H, W] in [0, 1], on the network's device.
        x, y: left and top of the window in output pixels.
        window: its side in output pixels.
        steps: points on the path.
        done: called after each step.

    Raises:
        UserError: the window is not within the output, values or gradients overflow, or memory is too small.
    """
    with enough_memory(network, image.shape, image.device, gradients=True):
        with torch.inference_mode():
            output = network(image)
        height, width = output.shape[2:]
        if min(x, y) < 0 or x + window > width or y + window > height:
            raise UserError(f"a window of {window} pixels at {x}, {y} is not within the {width}x{height} output")
        total = torch.zeros_like(image)
        path = [*(_blurred(image, SIGMA * (1 - step / steps)) for step in range(steps)), image]
        for start, end in pairwise(path):
            middle = ((start + end) / 2).requires_grad_()
            edges = _edges(network(middle), x, y, window)
            total += torch.autograd.grad(edges, middle)[0] * (end - start)
            done()
        with torch.no_grad():
            blurred, sharp = (float(_edges(network(point), x, y, window)) for point in (path[0], path[-1]))
    shares = total.sum(1)[0].double().cpu().numpy()
    if not (output.isfinite().all() and np.isfinite(shares).all() and np.isfinite(sharp - blurred)):
        raise UserError(NOT_FINITE if not output.isfinite().all() else "the gradient of the output is not finite")
    return Attribution(shares, output[0].clamp(0, 1).float().cpu().numpy(), sharp - blurred)


def _edges(output: Tensor, x: int, y: int, window: int) -> Tensor:
    """Sum of the gradient's length over the window, all channels."""
    part = output[..., y : y + window, x : x + window]
    down, right = part.diff(dim=-2)[..., :-1], part.diff(dim=-1)[..., :-1, :]
    return (down.square() + right.square() + 1e-12).sqrt().sum()  # the root has no slope at 0


def _blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(4 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=image.shape[1]), kernel.mT, groups=image.shape[1])
