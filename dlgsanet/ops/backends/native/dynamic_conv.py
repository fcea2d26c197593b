"""The fused dynamic depth-wise convolution outside a layer, and its gradients."""

import torch
from torch import Tensor

from dlgsanet.ops.backends import ConvolutionFunctions
from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.native.layers import sizes_of
from dlgsanet.ops.records import FusedDynamicConv


def fused_dynamic_depthwise_conv(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    library.call("fused_dynamic_depthwise_conv", x=x, **_tensors(convolution), out=out, **_sizes(convolution, x))
    return out


def fused_dynamic_depthwise_conv_backward(
    convolution: FusedDynamicConv, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = {"x": x.contiguous(), **_tensors(convolution)}
    grad_x, grad_z, grad_weight, grad_bias = library.gradients(
        "fused_dynamic_depthwise_conv_backward", tensors, grad=grad.contiguous(), **tensors, **_sizes(convolution, x)
    )
    return grad_x, grad_z, grad_weight, grad_bias


FUSED_CONVOLUTION = ConvolutionFunctions(fused_dynamic_depthwise_conv, fused_dynamic_depthwise_conv_backward)


def _tensors(convolution: FusedDynamicConv) -> dict[str, Tensor]:
    z, weight, bias, _ = convolution
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return {"z": z.contiguous(), "weight": weight.contiguous(), "bias": bias.contiguous()}


def _sizes(convolution: FusedDynamicConv, x: Tensor) -> dict[str, int]:
    window_size = convolution.window_size
    groups = len(convolution.weight) // window_size**2
    return sizes_of(x) | {"inputs": convolution.z.shape[1], "groups": groups, "window_size": window_size}
