"""The dynamic convolution with its gradient, as one autograd function around the functions of backends."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import autocast
from dlgsanet.ops.backends import ConvolutionFunctions
from dlgsanet.ops.records import Convolution, tensors_of

Choose = Callable[[Convolution, Tensor, bool], ConvolutionFunctions[Any]]  # arguments: convolution, x, training

_choose: list[Choose] = []
_plain: list[Callable[[type], ConvolutionFunctions[Any]]] = []


def choose_by(function: Choose) -> None:
    """Set how the fastest backend is found. `dispatch` does it, which backends cannot import."""
    _choose[:] = [function]


def differentiate_again_by(function: Callable[[type], ConvolutionFunctions[Any]]) -> None:
    """Set where gradients of PyTorch's operations are found. The reference does it, which imports this module."""
    _plain[:] = [function]


def convolve(functions: ConvolutionFunctions[Any] | None, convolution: Convolution, x: Tensor) -> Tensor:
    """The convolution and its gradient, both computed by a backend's functions, or by the fastest backend's (None).

    Like the operators, it computes outside autocast and returns contiguous tensors.
    """
    tensors = [x, *tensors_of(convolution)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Convolve.apply(functions, type(convolution), x, *convolution)
    return _forward(functions, convolution, x)


def _forward(functions: Any, convolution: Convolution, x: Tensor) -> Tensor:
    with autocast.off(x.device.type):
        return (functions or _choose[0](convolution, x, False)).forward(convolution, x).contiguous()


def convolve_backward(functions: Any, convolution: Convolution, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of x and of the convolution's tensors, by `functions` as in `convolve`; always one for a bias."""
    with autocast.off(x.device.type):
        functions = functions or _choose[0](convolution, x, True)
        return tuple(g.contiguous() for g in functions.backward(convolution, x, grad.contiguous()))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, functions: Any, kind: Any, x: Tensor, *fields: Any) -> Tensor:
        tensors = [f if isinstance(f, Tensor) else None for f in fields]
        ctx.functions, ctx.kind = functions, kind
        ctx.settings = [None if isinstance(f, Tensor) else f for f in fields]
        ctx.save_for_backward(x, *tensors)
        return _forward(functions, kind(*fields), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        convolution = ctx.kind(*(s if t is None else t for t, s in zip(tensors, ctx.settings, strict=True)))
        # A gradient that will be differentiated again consists of PyTorch's operations.
        functions = _plain[0](ctx.kind) if torch.is_grad_enabled() else ctx.functions
        # There is a gradient for a bias of None too; it is the last one and is dropped.
        grads = iter(convolve_backward(functions, convolution, x, grad))
        return None, None, *(None if t is None else next(grads) for t in (x, *tensors))
