"""The 3x3 convolutions of the network."""

import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding, and a pixel shuffle after it if factor is not 1.

    [B, in_channels, H, W] -> [B, out_channels / factor**2, factor * H, factor * W]
    """

    halo = 1  # rows above and below that a row of the result depends on

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, factor: int = 1):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.factor = factor

    def forward(self, x: Tensor, mean: Tensor | None = None, to: Tensor | None = None) -> Tensor:
        """mean: subtracted from x first; to: added to the result; shapes as in `ops.Conv3x3`."""
        if self.padding_mode == "zeros":
            return ops.apply(self.record(mean, to), x)
        out = F.pixel_shuffle(super().forward(x if mean is None else x - mean), self.factor)
        return out if to is None else to + out

    def record(self, mean: Tensor | None = None, to: Tensor | None = None) -> ops.Conv3x3:
        """The weights and settings, for the functions in `dlgsanet.ops`; arguments as for `forward`."""
        return ops.Conv3x3(self.weight, self.bias, mean, self.factor, to)
