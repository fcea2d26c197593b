"""Image quality: PSNR and SSIM."""

from dlgsanet.metrics.psnr_ssim import luma, psnr, ssim

__all__ = ["luma", "psnr", "ssim"]
