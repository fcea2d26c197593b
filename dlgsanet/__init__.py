"""DLGSANet: lightweight dynamic local and global self-attention for image super-resolution (ICCV 2023)."""

import importlib

__version__ = "0.1.0"

# The public API, imported on first use: `import dlgsanet` alone does not import torch.
_PUBLIC = {"load_model": "dlgsanet.inference.loading", "upscale": "dlgsanet.pictures.upscale"}

__all__ = ["__version__", "load_model", "upscale"]  # the last two: see __getattr__


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
