"""Weights derived from parameters, kept where the owner of a network promises that its parameters do not change."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from dlgsanet.ops import autocast

KEPT = "_dlgsanet_derived"

T = TypeVar("T")


def freeze(network: torch.nn.Module) -> None:
    """Let a network keep what it derives from its parameters, and CUDA graphs, for calls without gradients.

    Changes that PyTorch can see (an optimizer's step, loading a state, another device) are noticed. A change of
    ``parameter.data`` in place is not: do not freeze a network whose weights are averaged or trained.
    """
    for parameter in network.parameters():
        if not parameter.is_inference():  # made in inference mode: PyTorch sees no changes of it
            setattr(parameter, KEPT, {})


def is_frozen(network: torch.nn.Module) -> bool:
    """Whether `freeze` was called for a network."""
    return all(hasattr(parameter, KEPT) for parameter in network.parameters())


def derived(make: Callable[[], T], *tensors: Tensor, key: object = None) -> T:
    """``make()``, outside autocast, or what it gave before if `freeze` was called, and tensors and key are the same.

    Threads may call this at the same time, each with a CUDA stream of its own.
    """
    first = tensors[0]
    kept: dict[str, Any] | None = None if torch.is_grad_enabled() else getattr(first, KEPT, None)
    if kept is None:
        with autocast.off(first.device.type):
            return make()
    state = [key, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)]
    found: tuple[Any, T] | None = kept.get("derived")  # read once: another thread may replace it
    if found is None or found[0] != state:
        with autocast.off(first.device.type):
            found = state, make()
        if first.is_cuda and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(first.device).synchronize()  # other streams do not wait for this one
        kept["derived"] = found
    return found[1]
