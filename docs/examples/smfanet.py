"""SMFANet (Zheng et al., ECCV 2024): an example of a network of your own, next to the ones that come with the package.

Registering a class in BasicSR's registry is all that training, testing and the benchmark need. An option file names it:

    network_g: {type: SMFANet, dim: 48, n_blocks: 12, upscaling_factor: 4}

The names of the parameters are those of the published weights (https://github.com/Zheng-MJ/SMFANet, Apache-2.0), which
load without changes. The defaults are those of SMFANet+.
"""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


class DetailEnhancement(nn.Module):
    """Local details: a depth-wise and a 1x1 convolution to twice the channels, GELU, 1x1 back."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_0 = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1, groups=dim), nn.Conv2d(2 * dim, 2 * dim, 1))
        self.conv_1 = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(F.gelu(self.conv_0(x)))


class SelfModulation(nn.Module):
    """Self-modulation feature aggregation: a coarse map of the image scales its features; details are added."""

    coarser = 8

    def __init__(self, dim: int):
        super().__init__()
        self.linear_0 = nn.Conv2d(dim, 2 * dim, 1)
        self.linear_1 = nn.Conv2d(dim, dim, 1)
        self.linear_2 = nn.Conv2d(dim, dim, 1)
        self.lde = DetailEnhancement(dim)
        self.dw_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.alpha = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        local, context = self.linear_0(x).chunk(2, dim=1)
        size = max(1, height // self.coarser), max(1, width // self.coarser)
        coarse = self.dw_conv(F.adaptive_max_pool2d(context, size))
        coarse = coarse * self.alpha + context.var((2, 3), keepdim=True) * self.belt
        scales = F.interpolate(F.gelu(self.linear_1(coarse)), (height, width), mode="nearest")
        return self.linear_2(context * scales + self.lde(local))


class PartialFeedForward(nn.Module):
    """A feed-forward network in which a quarter of the hidden channels sees the neighbouring pixels."""

    def __init__(self, dim: int, ffn_scale: float):
        super().__init__()
        hidden = int(dim * ffn_scale)
        self.split = [hidden // 4, hidden - hidden // 4]
        self.conv_0 = nn.Conv2d(dim, hidden, 1)
        self.conv_1 = nn.Conv2d(hidden // 4, hidden // 4, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        spatial, rest = F.gelu(self.conv_0(x)).split(self.split, dim=1)
        return self.conv_2(torch.cat([F.gelu(self.conv_1(spatial)), rest], 1))


class Block(nn.Module):
    """Both parts, each on normalized features and with a residual connection."""

    def __init__(self, dim: int, ffn_scale: float):
        super().__init__()
        self.smfa = SelfModulation(dim)
        self.pcfn = PartialFeedForward(dim, ffn_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.smfa(F.normalize(x))
        return x + self.pcfn(F.normalize(x))


@ARCH_REGISTRY.register()
class SMFANet(nn.Module):
    """Self-modulation feature aggregation network.

    Args:
        dim: feature channels.
        n_blocks: blocks.
        ffn_scale: hidden channels of the feed-forward network over `dim`.
        upscaling_factor: factor of enlargement.

    Shape: [B, 3, H, W] in [0, 1] -> [B, 3, upscaling_factor * H, upscaling_factor * W], not clipped.
    """

    def __init__(self, dim: int = 48, n_blocks: int = 12, ffn_scale: float = 2.0, upscaling_factor: int = 4):
        super().__init__()
        self.to_feat = nn.Conv2d(3, dim, 3, padding=1)
        self.feats = nn.Sequential(*(Block(dim, ffn_scale) for _ in range(n_blocks)))
        self.to_img = nn.Sequential(
            nn.Conv2d(dim, 3 * upscaling_factor**2, 3, padding=1), nn.PixelShuffle(upscaling_factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.to_feat(x)
        return self.to_img(x + self.feats(x))
