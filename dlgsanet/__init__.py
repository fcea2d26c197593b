"""DLGSANet: lightweight dynamic local and global self-attention for image super-resolution (ICCV 2023)."""

__version__ = "0.1.0"
