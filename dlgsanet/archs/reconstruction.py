"""Reconstruction of the enlarged image from features: the option `upsampler`."""

from collections import OrderedDict

from torch import Tensor, nn

from dlgsanet.archs.convolution import Conv3x3

UPSAMPLERS = ("pixelshuffledirect", "pixelshuffle", "")
FEATURES = 64  # channels in the stages of `pixelshuffle`


class Reconstruction(nn.Sequential):
    """[B, dim, H, W] -> [B, channels, upscale * H, upscale * W]."""

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """to: added to the result, as in `ops.Conv3x3`."""
        *others, last = (layer for part in self for layer in (part if isinstance(part, nn.Sequential) else [part]))
        for layer in others:
            x = layer(x)
        return last(x, to=to)


def reconstruction(upsampler: str, dim: int, channels: int, upscale: int) -> Reconstruction:
    """[B, dim, H, W] -> [B, channels, upscale * H, upscale * W].

    `pixelshuffledirect`: one convolution and a pixel shuffle. `pixelshuffle`: one stage per factor of 2, or one stage
    of factor 3. The empty string: one convolution that does not change the size.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if upsampler == "pixelshuffledirect":
        parts["upsample"] = _stages(dim, channels, [upscale])
        return Reconstruction(parts)
    if upsampler == "pixelshuffle":
        parts["before"] = nn.Sequential(Conv3x3(dim, FEATURES), nn.LeakyReLU(0.01))
        factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
        parts["upsample"] = _stages(FEATURES, FEATURES, factors)
        dim = FEATURES
    parts["last"] = Conv3x3(dim, channels)
    return Reconstruction(parts)


def _stages(dim: int, channels: int, factors: list[int]) -> nn.Sequential:
    """One stage per factor, named as in published checkpoints, where each pixel shuffle is a module of its own."""
    stages = (Conv3x3(dim, factor**2 * channels, factor=factor) for factor in factors)
    return nn.Sequential(OrderedDict((str(2 * i), stage) for i, stage in enumerate(stages)))
