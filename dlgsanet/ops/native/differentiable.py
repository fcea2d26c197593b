"""Layers for training. Nothing but a layer's input is kept for the backward pass, which makes all else again."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.native.layers import gated_feed_forward
from dlgsanet.ops.native.library import call, round_up, strips
from dlgsanet.ops.strips.mixing import mixing_matrices


def differentiable_gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    return _GatedFeedForward.apply(x, norm_weight, norm_bias, proj_in, depthwise, proj_out)


def differentiable_channel_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
    window: None,
) -> Tensor:
    q, k, v = _ProjectedDepthwise.apply(x, norm_weight, norm_bias, qkv_weight, depthwise).flatten(2).chunk(3, 1)
    norms = torch.linalg.vector_norm(q, dim=2), torch.linalg.vector_norm(k, dim=2)
    mixing = mixing_matrices(q @ k.transpose(1, 2), *norms, temperature, proj_out, activation, topk_ratio)
    return x + (mixing @ v).view(x.shape)


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, proj_in, depthwise, proj_out):
        ctx.save_for_backward(x, norm_weight, norm_bias, proj_in, depthwise, proj_out)
        return gated_feed_forward(x, norm_weight, norm_bias, proj_in, depthwise, proj_out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *layer, proj_out = ctx.saved_tensors
        half = proj_out.shape[1]
        grad_x, grad_proj_out, parts = _gradients(
            "gated_feed_forward_backward", grad, layer, (proj_out.flatten(1).t().contiguous(),), half, half
        )
        return grad_x, *parts, grad_proj_out.t().reshape(proj_out.shape)


class _ProjectedDepthwise(torch.autograd.Function):
    """``depthwise_3x3(proj(norm(x)))``."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, proj, depthwise):
        ctx.save_for_backward(x, norm_weight, norm_bias, proj, depthwise)
        x, *weights = (t.contiguous() for t in (x, norm_weight, norm_bias, proj, depthwise))
        batch, channels, height, width = x.shape
        out = x.new_empty(batch, len(proj), height, width)
        call("projected_depthwise", (x, *weights, out), (batch, channels, len(proj), height, width))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer = ctx.saved_tensors
        grad_x, _, parts = _gradients("projected_depthwise_backward", grad, layer, (), len(layer[3]), 0)
        return grad_x, *parts


def _gradients(
    function: str, grad: Tensor, layer: list[Tensor], more: tuple[Tensor, ...], size: int, more_rows: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Call the backward pass `function` of a layer that begins with ``depthwise(proj(norm(x)))``.

    Args:
        layer: x, norm_weight, norm_bias, proj and depthwise.
        more: transposed weights beyond these that the function takes.
        size: its hidden size.
        more_rows: rows of the gradient of `more`, each of C columns.

    Returns:
        The gradients of x, of `more` [more_rows, C], and of the layer's weights.
    """
    grad, x, norm_weight, norm_bias, proj, depthwise = (t.contiguous() for t in (grad, *layer))
    batch, channels, height, width = x.shape
    hidden, pitch = len(proj), round_up(channels)
    sizes = (more_rows * pitch, hidden * pitch, 9 * hidden, channels, channels)
    parts = torch.zeros(strips(batch, height), sum(sizes))
    grad_x = torch.empty_like(x)
    transposed, flipped = proj.flatten(1).t().contiguous(), depthwise.flatten(1).flip(1)
    tensors = (grad, x, norm_weight, norm_bias, proj, depthwise, transposed, flipped, *more, grad_x, parts)
    call(function, tensors, (batch, channels, size, height, width))
    grad_more, grad_proj, grad_depthwise, grad_norm_weight, grad_norm_bias = parts[0].split(sizes)
    grad_proj = grad_proj.view(hidden, pitch)[:, :channels].reshape(proj.shape)
    weights = [grad_norm_weight.clone(), grad_norm_bias.clone(), grad_proj, grad_depthwise.reshape(depthwise.shape)]
    return grad_x, grad_more.view(more_rows, pitch)[:, :channels], weights
