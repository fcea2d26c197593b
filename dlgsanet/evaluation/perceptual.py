"""LPIPS and DISTS, by the package `pyiqa` where it is installed (both RGB, lower is better)."""

import functools

import numpy as np
import torch

from dlgsanet.errors import UserError, first_line
from dlgsanet.evaluation.scoring import Metric, to_tensor

PERCEPTUAL = ("lpips", "dists")


@functools.cache
def perceptual_metric(name: str, device: str) -> Metric:
    """Distance of two uint8 images [H, W, 3].

    Raises:
        UserError: pyiqa is not installed, or its networks cannot be downloaded.
    """
    try:
        import dlgsanet.basicsr_compat  # noqa: F401, I001  # before pyiqa, which imports torchvision
        import pyiqa
    except ImportError:
        raise UserError(f"--metrics {name}: needs the package pyiqa (pip install pyiqa)") from None
    try:
        measure = pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:  # whatever a failed download raises: URLError, OSError, RuntimeError, ...
        raise UserError(f"--metrics {name}: pyiqa cannot get its backbone's weights ({first_line(error)})") from error

    @torch.inference_mode()
    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        return float(measure(to_tensor([image], device), to_tensor([reference], device)))

    return distance
