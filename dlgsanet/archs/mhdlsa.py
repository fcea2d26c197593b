"""Multi-head dynamic local self-attention (DLGSANet, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.parts import has_plain_parts


class MHDLSA(nn.Module):
    """Filter each pixel with filters computed from its neighbourhood; pre-norm, residual.

    Args:
        dim: channels C.
        window_size: side K of the filters, odd.
        channels_per_filter: channels that share a filter; C is a multiple of it.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    biased = frozenset({"norm", "squeeze", "spatial", "filters"})  # parts

    def __init__(self, dim: int, window_size: int = 7, channels_per_filter: int = 6):
        super().__init__()
        self.window_size = window_size
        self.halo = window_size // 2  # a row of the result depends on this many rows above and below
        squeezed = dim // 4
        filters = dim // channels_per_filter * window_size**2
        self.norm = LayerNorm(dim)
        self.proj_in = nn.Conv2d(dim, dim, 1, bias=False)
        self.squeeze = nn.Conv2d(dim, squeezed, 1)
        self.spatial = nn.Conv2d(squeezed, squeezed, window_size, padding=window_size // 2, groups=squeezed)
        self.filters = nn.Conv2d(squeezed, filters, 1)
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)

    def record(self) -> ops.LocalAttention:
        """The weights and settings, for the functions in `dlgsanet.ops`."""
        squeeze_bias, spatial_bias, filter_bias = self.squeeze.bias, self.spatial.bias, self.filters.bias
        assert squeeze_bias is not None
        assert spatial_bias is not None
        assert filter_bias is not None
        return ops.LocalAttention(
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            proj_in=self.proj_in.weight,
            squeeze_weight=self.squeeze.weight,
            squeeze_bias=squeeze_bias,
            spatial_weight=self.spatial.weight,
            spatial_bias=spatial_bias,
            filter_weight=self.filters.weight,
            filter_bias=filter_bias,
            proj_out=self.proj_out.weight,
            window_size=self.window_size,
        )

    def forward(self, x: Tensor) -> Tensor:
        if has_plain_parts(self):
            return ops.apply(self.record(), x)
        y = self.proj_in(self.norm(x))
        filters = self.filters(self.spatial(self.squeeze(y))).unflatten(1, (-1, self.window_size, self.window_size))
        return x + self.proj_out(ops.dynamic_depthwise_conv(y, filters))

    def portable(self, x: Tensor) -> Tensor:
        """`forward` in plain operations, for export."""
        y = self.proj_in(self.norm.portable(x))
        z = self.spatial(self.squeeze(y))
        return x + self.proj_out(_portable_dynamic_conv(y, z, self.filters, self.window_size))


class StaticLocalLayer(nn.Module):
    """MHDLSA with one learned depth-wise filter per channel instead of dynamic filters (`idynamic: false`).

    Arguments and shape as in `MHDLSA`.
    """

    def __init__(self, dim: int, window_size: int = 7):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.proj_in = nn.Conv2d(dim, dim, 1, bias=False)
        self.depthwise = nn.Conv2d(dim, dim, window_size, padding=window_size // 2, groups=dim)
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.halo = window_size // 2  # a row of the result depends on this many rows above and below

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_out(self.depthwise(self.proj_in(self.norm(x))))

    def portable(self, x: Tensor) -> Tensor:
        """`forward` in plain operations, for export."""
        return x + self.proj_out(self.depthwise(self.proj_in(self.norm.portable(x))))


def _portable_dynamic_conv(x: Tensor, z: Tensor, filters: nn.Conv2d, window_size: int) -> Tensor:
    """The dynamic depth-wise convolution of x [B, C, H, W] with filters [B, G * K * K, H, W] from z [B, D, H, W].

    It computes one row of the window at a time: K filter values per pixel, times K copies of x shifted along the width.
    The copies have K - 1 additional rows. The filter values are shifted down to match the copies, and the sums are
    shifted back, because filters and sums are smaller than the copies (by C / G and by K).
    """
    k, height, channels = window_size, x.shape[2], x.shape[1]
    groups = filters.out_channels // k**2
    # A convolution with filters that contain a single 1 makes the copies [B, C * K, H + K - 1, W].
    one_hot = torch.eye(k, dtype=x.dtype, device=x.device)[:, None, None].repeat(channels, 1, 1, 1)
    copies = F.conv2d(x, one_hot, padding=k // 2, groups=channels).unflatten(1, (-1, channels // groups, k))
    z = F.pad(z, (0, 0, k - 1, k - 1))
    rows = []
    for i, (weight, bias) in enumerate(zip(*(_by_rows(p, k) for p in filters.parameters()), strict=True)):
        taps = F.conv2d(z[:, :, k - 1 - i : height + 2 * (k - 1) - i], weight, bias).unflatten(1, (groups, 1, k))
        rows.append((taps * copies).sum(3)[..., i : i + height, :])
    out = rows[0]
    for row in rows[1:]:
        out = out + row
    return out.flatten(1, 2)


def _by_rows(parameter: Tensor, k: int) -> tuple[Tensor, ...]:
    """K parts of a weight or bias [G * K * K, ...], one for each row of the window, [G * K, ...]."""
    return parameter.unflatten(0, (-1, k, k)).transpose(0, 1).flatten(1, 2).unbind(0)
