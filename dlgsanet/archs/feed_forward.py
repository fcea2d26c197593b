"""The feed-forward networks that follow each attention."""

import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.parts import has_plain_parts


class GDFN(nn.Module):
    """Gated depth-wise feed-forward network (Restormer, section 3.2); pre-norm, residual.

    Args:
        dim: channels C.
        expansion: hidden channels are ``int(C * expansion)``.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    halo = 1  # a row of the result depends on this many rows above and below
    biased = frozenset({"norm"})  # parts

    def __init__(self, dim: int, expansion: float = 2.0):
        super().__init__()
        hidden = int(dim * expansion)
        self.norm = LayerNorm(dim)
        self.proj_in = nn.Conv2d(dim, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.proj_out = nn.Conv2d(hidden, dim, 1, bias=False)

    def record(self) -> ops.GatedFeedForward:
        """The weights, for the functions in `dlgsanet.ops`."""
        return ops.GatedFeedForward(
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            proj_in=self.proj_in.weight,
            depthwise=self.depthwise.weight,
            proj_out=self.proj_out.weight,
        )

    def forward(self, x: Tensor) -> Tensor:
        return ops.apply(self.record(), x) if has_plain_parts(self) else self._by_parts(x, self.norm(x))

    def portable(self, x: Tensor) -> Tensor:
        """`forward` in plain operations, for export."""
        return self._by_parts(x, self.norm.portable(x))

    def _by_parts(self, x: Tensor, normed: Tensor) -> Tensor:
        """`forward` by calls of its parts; normed: x after the norm, of its shape."""
        a, b = self.depthwise(self.proj_in(normed)).chunk(2, 1)
        return x + self.proj_out(F.gelu(a) * b)


class BaseFFN(nn.Module):
    """Two 1x1 convolutions with a GELU between them; pre-norm, residual. Arguments and shape as in `GDFN`."""

    halo = 0

    def __init__(self, dim: int, expansion: float = 2.0):
        super().__init__()
        hidden = int(dim * expansion)
        self.norm = LayerNorm(dim)
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.reduce = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(F.gelu(self.expand(self.norm(x))))

    def portable(self, x: Tensor) -> Tensor:
        """`forward` in plain operations, for export."""
        return x + self.reduce(F.gelu(self.expand(self.norm.portable(x))))


FEED_FORWARDS = {"GDFN": GDFN, "BaseFFN": BaseFFN}
