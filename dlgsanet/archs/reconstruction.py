"""Reconstruction of the enlarged image from features: the option `upsampler`."""

from collections import OrderedDict

from torch import nn

from dlgsanet.archs.convolution import Conv3x3

UPSAMPLERS = ("pixelshuffledirect", "pixelshuffle", "")
FEATURES = 64  # channels in the stages of `pixelshuffle`


def reconstruction(upsampler: str, dim: int, channels: int, upscale: int) -> nn.Sequential:
    """[B, dim, H, W] -> [B, channels, upscale * H, upscale * W].

    `pixelshuffledirect`: one convolution and a pixel shuffle. `pixelshuffle`: one stage per factor of 2, or one stage
    of factor 3. The empty string: one convolution that does not change the size.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if upsampler == "pixelshuffledirect":
        parts["upsample"] = nn.Sequential(*_shuffle(dim, channels, upscale))
        return nn.Sequential(parts)
    if upsampler == "pixelshuffle":
        parts["before"] = nn.Sequential(Conv3x3(dim, FEATURES), nn.LeakyReLU(0.01))
        factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
        parts["upsample"] = nn.Sequential(*(m for r in factors for m in _shuffle(FEATURES, FEATURES, r)))
        dim = FEATURES
    parts["last"] = Conv3x3(dim, channels)
    return nn.Sequential(parts)


def _shuffle(dim: int, channels: int, factor: int) -> tuple[nn.Module, nn.Module]:
    return Conv3x3(dim, factor**2 * channels), nn.PixelShuffle(factor)
