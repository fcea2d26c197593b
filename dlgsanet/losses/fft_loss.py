"""A loss on the spectra of images, added to a pixel loss in restoration networks (MIMO-UNet, ICCV 2021, eq. 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FFTLoss(nn.Module):
    """Mean absolute difference of the real and imaginary parts of two images' orthonormal spectra.

    Args:
        loss_weight: factor of the loss. MIMO-UNet's is 0.1.
    """

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare pred with target, both [B, C, H, W] in [0, 1]; a scalar."""
        difference = torch.fft.rfft2((pred - target).float(), norm="ortho")  # the transform is linear
        parts = torch.view_as_real(difference)
        return self.loss_weight * F.l1_loss(parts, torch.zeros_like(parts))
