"""Layers for training. They keep their input and what is projected from it; the backward pass computes the rest again.

Where memory is short, the feed-forward network, which would keep most, keeps its input alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.native.layers import (
    attend,
    attention_sums,
    attention_weights,
    keeping_dynamic_local_attention,
    keeping_gated_feed_forward,
    sizes_of,
    weights_of,
)
from dlgsanet.ops.backends.native.layers import convolution as infer_convolution
from dlgsanet.ops.backends.torch.strip_rows import fits
from dlgsanet.ops.records import ChannelAttention, Conv3x3, GatedFeedForward, LocalAttention


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return _DynamicLocalAttention.apply(x, *layer)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    return _GatedFeedForward.apply(x, *layer)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    return _ChannelAttention.apply(x, *layer)


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    if layer.mean is not None:
        x = x - layer.mean
    return _Convolution.apply(x, layer.weight, layer.bias, layer.factor, layer.to)


# Each takes x and the fields of a record as separate arguments, as autograd requires, and returns their gradients.


class _DynamicLocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        x = x.contiguous()
        out, y, z, filtered = keeping_dynamic_local_attention(LocalAttention(*fields), x, len(x))
        ctx.window_size = fields[-1]
        ctx.save_for_backward(x, *fields[:-1], y, z, filtered)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *fields, y, z, filtered = ctx.saved_tensors
        layer = LocalAttention._make([*fields, ctx.window_size])
        tensors = {"x": x, **weights_of(layer)}
        grads = library.gradients(
            "dynamic_local_attention_backward",
            tensors,
            grad=grad.contiguous(),
            **tensors,
            y=y,
            z=z,
            filtered=filtered,
            grad_y=torch.empty_like(y),
            grad_z=torch.empty_like(z),
            squeezed=z.shape[1],
            groups=len(layer.filter_weight) // layer.window_size**2,
            window_size=layer.window_size,
            **sizes_of(x),
        )
        return *grads, None


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        layer = GatedFeedForward(*fields)
        floats = 1 + len(layer.proj_in) / x.shape[1]  # kept for each value of x; other layers keep fewer
        out, projected = keeping_gated_feed_forward(layer, x, len(x) if fits(x, floats * x.element_size()) else 0)
        ctx.save_for_backward(x, *fields, projected)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *fields, projected = ctx.saved_tensors
        layer = GatedFeedForward(*fields)
        tensors = {"x": x.contiguous(), **weights_of(layer)}
        sizes = sizes_of(x) | {"half": layer.proj_out.shape[1], "kept": len(projected)}
        grads = library.gradients(
            "gated_feed_forward_backward", tensors, grad=grad.contiguous(), **tensors, projected=projected, **sizes
        )
        return tuple(grads)


class _ChannelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        layer, x = ChannelAttention(*fields), x.contiguous()
        v, cosines, norms, projected = attention_sums(layer, x, len(x))
        # Autograd handles the small part, from the cosines to the weights.
        ctx.small = cosines.requires_grad_(), layer.temperature.detach().requires_grad_()
        with torch.enable_grad():
            ctx.weights = attention_weights(layer._replace(temperature=ctx.small[1]), cosines)
        ctx.save_for_backward(x, *fields[:4], layer.proj_out, projected, norms)
        return attend(layer, x, v, ctx.weights.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, *normed, proj_out, projected, norms), grad = ctx.saved_tensors, grad.contiguous()
        tensors = {"x": x} | {name: t.contiguous() for name, t in zip(ChannelAttention._fields, normed, strict=False)}
        cosines, weights = ctx.small[0].detach(), ctx.weights.detach()
        mixed = {"weights": weights, "proj_out": proj_out.contiguous()}
        shared: dict[str, Any] = {
            "grad": grad,
            "projected": projected,
            "heads": weights.shape[3],
            **mixed,
            **sizes_of(x),
        }
        grad_weights, grad_proj_out = library.gradients(
            "channel_attention_mixing_backward", mixed, depthwise=tensors["depthwise"], **shared
        )
        grad_cosines, grad_temperature = torch.autograd.grad(ctx.weights, ctx.small, grad_weights, retain_graph=True)
        kept = {"cosines": cosines, "norms": norms, "grad_cosines": grad_cosines.contiguous()}
        grads = library.gradients("channel_attention_backward", tensors, **tensors, **kept, **shared)
        return *grads, grad_temperature, grad_proj_out, None, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: int, to: Tensor | None) -> Tensor:
        ctx.factor, ctx.shape_of_to = factor, None if to is None else to.shape
        ctx.save_for_backward(x, weight)
        return infer_convolution(Conv3x3(weight, bias, None, factor, to), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_to = grad.sum_to_size(ctx.shape_of_to) if ctx.needs_input_grad[4] else None
        grad = (grad if ctx.factor == 1 else F.pixel_unshuffle(grad, ctx.factor)).contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = infer_convolution(Conv3x3(weight.flip(2, 3).transpose(0, 1), None), grad)
        x = x.contiguous()
        grad_weight, grad_bias = x.new_empty(weight.shape), x.new_empty(len(weight))
        library.call(
            "convolution_backward",
            grad=grad, x=x, grad_weight=grad_weight, grad_bias=grad_bias, outputs=len(weight), **sizes_of(x),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None, grad_to
