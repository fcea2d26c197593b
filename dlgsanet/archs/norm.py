"""Layer normalisation over the channels of each pixel (biased variance, eps 1e-5)."""

import torch
from torch import Tensor, nn

from dlgsanet import ops


class LayerNorm(nn.Module):
    """Normalise [B, C, H, W] over C at each pixel, then scale and shift each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias)

    def portable(self, x: Tensor) -> Tensor:
        """For export: computes in float32 and returns the dtype of x."""
        normalised = ops.layer_norm(*(as_dtype(t, torch.float32) for t in (x, self.weight, self.bias)))
        return as_dtype(normalised, x.dtype)


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; adds no operation to an exported graph if x has this dtype already."""
    return x if x.dtype == dtype else x.to(dtype)
