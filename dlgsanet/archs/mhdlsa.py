"""Multi-head dynamic local self-attention (DLGSANet, section 3.2)."""

from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.norm import LayerNorm


class MHDLSA(nn.Module):
    """Filter each pixel with filters made from its neighbourhood; pre-norm, residual.

    Args:
        dim: channels C.
        window_size: side K of the filters, odd.
        channels_per_filter: channels that share a filter; C is a multiple of it.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, dim: int, window_size: int = 7, channels_per_filter: int = 6):
        super().__init__()
        self.window_size = window_size
        self.halo = window_size // 2  # rows above and below a row of the result that it depends on
        squeezed = dim // 4
        filters = dim // channels_per_filter * window_size**2
        self.norm = LayerNorm(dim)
        self.proj_in = nn.Conv2d(dim, dim, 1, bias=False)
        self.squeeze = nn.Conv2d(dim, squeezed, 1)
        self.spatial = nn.Conv2d(squeezed, squeezed, window_size, padding=window_size // 2, groups=squeezed)
        self.filters = nn.Conv2d(squeezed, filters, 1)
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)

    def record(self) -> ops.LocalAttention:
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
        return ops.apply(self.record(), x)


class StaticLocalLayer(nn.Module):
    """MHDLSA with one learned depth-wise filter a channel in place of the dynamic ones (`idynamic: false`)."""

    def __init__(self, dim: int, window_size: int = 7):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.proj_in = nn.Conv2d(dim, dim, 1, bias=False)
        self.depthwise = nn.Conv2d(dim, dim, window_size, padding=window_size // 2, groups=dim)
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.halo = window_size // 2  # rows above and below a row of the result that it depends on

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_out(self.depthwise(self.proj_in(self.norm(x))))
