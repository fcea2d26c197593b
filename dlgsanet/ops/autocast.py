"""Autocast: whether it is enabled, the dtype that it chooses, and the dynamic convolution under it."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from dlgsanet.device import GPUS

# Whether types of devices have autocast. These are asked for at once, and others when they are first used, because
# torch.compile cannot trace the question in every release of PyTorch.
_has_autocast = {device: torch.amp.is_autocast_available(device) for device in ("cpu", "meta", *GPUS)}


def is_on(device: str) -> bool:
    """Whether autocast is enabled for a type of device. Some types, such as meta, have no autocast."""
    if device not in _has_autocast:
        _has_autocast[device] = torch.amp.is_autocast_available(device)
    return _has_autocast[device] and torch.is_autocast_enabled(device)


def off(device: str) -> contextlib.AbstractContextManager[None]:
    """A context without autocast for a type of device."""
    return torch.autocast(device, enabled=False) if is_on(device) else contextlib.nullcontext()


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype in which a layer computes from x: autocast's where it is enabled, except for float64."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if is_on(device) and x.dtype != torch.float64 else x.dtype


def in_autocast_dtype(operator: Callable[..., Tensor], x: Tensor, feature: Tensor, *rest: object) -> Tensor:
    """Call an operator. Under autocast its two images are converted to autocast's dtype; the rest stays as it is.

    `torch.library.register_autocast` would fix one dtype for each device.
    """
    device = x.device.type
    if not is_on(device):
        return operator(x, feature, *rest)
    dtype = torch.get_autocast_dtype(device)
    x, feature = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, feature))
    with off(device):
        return operator(x, feature, *rest)
