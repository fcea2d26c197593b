"""The operators of the dynamic convolution under autocast."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_autocast_dtype(operator: Callable[..., Tensor], x: Tensor, feature: Tensor, *rest: object) -> Tensor:
    """Call an operator. Under autocast its two images are converted to autocast's dtype; the rest stays as it is.

    `torch.library.register_autocast` would fix one dtype for each device.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return operator(x, feature, *rest)
    dtype = torch.get_autocast_dtype(device)
    x, feature = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, feature))
    with torch.autocast(device, enabled=False):
        return operator(x, feature, *rest)
