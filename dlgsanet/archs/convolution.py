"""The 3x3 convolutions of the network."""

import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding: [B, in_channels, H, W] -> [B, out_channels, H, W]."""

    halo = 1  # rows above and below that a row of the result depends on

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu:
            return ops.apply(self.record(), x)
        return F.conv2d(x, self.weight, self.bias, padding=1)

    def record(self) -> ops.Conv3x3:
        return ops.Conv3x3(self.weight, self.bias)
