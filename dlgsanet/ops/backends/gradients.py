"""The dynamic convolution of a backend as one autograd function, for layers that the backend composes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends import ConvolutionFunctions
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv


def convolve(functions: ConvolutionFunctions[Any], convolution: DynamicConv | FusedDynamicConv, x: Tensor) -> Tensor:
    """The convolution and its gradient, both computed by a backend's functions.

    Like the operators, it computes outside autocast and returns contiguous tensors.
    """
    return _Convolve.apply(functions, type(convolution), x, *convolution)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, functions: Any, kind: Any, x: Tensor, *fields: Any) -> Tensor:
        tensors = [f if isinstance(f, Tensor) else None for f in fields]
        ctx.functions, ctx.kind = functions, kind
        ctx.settings = [None if isinstance(f, Tensor) else f for f in fields]
        ctx.save_for_backward(x, *tensors)
        with torch.autocast(x.device.type, enabled=False):
            return functions.forward(kind(*fields), x).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        fields = [s if t is None else t for t, s in zip(tensors, ctx.settings, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            grads = iter(ctx.functions.backward(ctx.kind(*fields), x, grad.contiguous()))
        # There is a gradient for a bias of None too; it is the last one and is dropped.
        of_x, *of_fields = (
            next(grads).contiguous(),
            *(None if t is None else next(grads).contiguous() for t in tensors),
        )
        return None, None, of_x, *of_fields
