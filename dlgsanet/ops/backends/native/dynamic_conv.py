"""The fused dynamic depth-wise convolution by itself, and its gradients."""

import torch
from torch import Tensor

from dlgsanet.ops.backends.native.library import call, round_up, strips


def fused_dynamic_depthwise_conv(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    x, z, weight, bias = _prepare(x, z, weight, bias)
    out = torch.empty_like(x)
    call("fused_dynamic_depthwise_conv", (x, z, weight, bias, out), _sizes(x, z, weight, window_size))
    return out


def fused_dynamic_depthwise_conv_backward(
    grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, z, weight, bias = _prepare(x, z, weight, bias)
    grad = grad.contiguous()
    sizes = _sizes(x, z, weight, window_size)
    batch, _, inputs, groups, _, height, _ = sizes
    transposed = weight.view(groups, -1, inputs).transpose(1, 2).contiguous()
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(z)
    parts = torch.zeros(strips(batch, height), len(weight), round_up(inputs + 1))
    tensors = (grad, x, z, weight, bias, transposed, grad_x, grad_z, parts)
    call("fused_dynamic_depthwise_conv_backward", tensors, sizes)
    return grad_x, grad_z, parts[0, :, :inputs].clone(), parts[0, :, inputs].clone()


def _prepare(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return x.contiguous(), z.contiguous(), weight.contiguous(), bias.contiguous()


def _sizes(x: Tensor, z: Tensor, weight: Tensor, window_size: int) -> tuple[int, ...]:
    """B, C, D, G, K, H, W."""
    return (*x.shape[:2], z.shape[1], weight.shape[0] // window_size**2, window_size, *x.shape[2:])
