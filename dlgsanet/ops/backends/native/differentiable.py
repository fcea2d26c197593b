"""Layers for training. Little but a layer's input is kept for the backward pass, which makes the rest again."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends.native.dynamic_conv import (
    fused_dynamic_depthwise_conv,
    fused_dynamic_depthwise_conv_backward,
)
from dlgsanet.ops.backends.native.layers import gated_feed_forward
from dlgsanet.ops.backends.native.library import call, round_up, strips
from dlgsanet.ops.backends.torch.mixing import in_heads, mixing_matrices


def differentiable_dynamic_local_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    proj_in: Tensor,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    filter_weight: Tensor,
    filter_bias: Tensor,
    proj_out: Tensor,
    window_size: int,
) -> Tensor:
    return _DynamicLocalAttention.apply(
        x, norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias,
        spatial_weight, spatial_bias, filter_weight, filter_bias, proj_out, window_size,
    )  # fmt: skip


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
    return _ChannelAttention.apply(
        x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out, activation, topk_ratio
    )


class _DynamicLocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias,
        spatial_weight, spatial_bias, filter_weight, filter_bias, proj_out, window_size,
    ):  # fmt: skip
        layer = (x, norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias, spatial_weight, spatial_bias)
        x, *weights = (t.contiguous() for t in layer)
        batch, channels, height, width = x.shape
        y, z = torch.empty_like(x), x.new_empty(batch, len(squeeze_weight), height, width)
        sizes = (batch, channels, len(squeeze_weight), window_size, height, width)
        call("local_features", (x, *weights, y, z), sizes)
        filtered = fused_dynamic_depthwise_conv(y, z, filter_weight.flatten(1), filter_bias, window_size)
        ctx.save_for_backward(x, *weights, filter_weight, filter_bias, proj_out, y, z, filtered)
        ctx.sizes = sizes
        return _project(x, proj_out.flatten(1).expand(batch, -1, -1), filtered)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, *weights, filter_weight, filter_bias, proj_out, y, z, filtered = ctx.saved_tensors
        norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias, spatial_weight, _ = weights
        batch, channels, squeezed, window_size, height, _ = ctx.sizes
        grad = grad.contiguous()

        pixels = grad.flatten(2)
        grad_proj_out = (pixels @ filtered.flatten(2).transpose(1, 2)).sum(0).view_as(proj_out)
        grad_filtered = torch.bmm(proj_out.flatten(1).t().expand(batch, -1, -1), pixels).view_as(x)
        grad_y, grad_z, grad_filter_weight, grad_filter_bias = fused_dynamic_depthwise_conv_backward(
            grad_filtered, y, z, filter_weight.flatten(1), filter_bias, window_size
        )

        taps = window_size**2
        pitch, squeeze_pitch = round_up(channels), round_up(channels + 1)
        sizes = (channels * pitch, squeezed * squeeze_pitch, squeezed * (taps + 1), channels, channels)
        parts = x.new_zeros(strips(batch, height), sum(sizes))
        grad_x = torch.empty_like(x)
        transposed = (proj_in.flatten(1).t().contiguous(), squeeze_weight.flatten(1).t().contiguous())
        flipped = spatial_weight.flatten(1).flip(1)
        tensors = (grad, grad_y, grad_z, x, norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias)
        call("local_features_backward", (*tensors, *transposed, flipped, y, grad_x, parts), ctx.sizes)
        grad_proj_in, grad_squeeze, grad_spatial, grad_norm_weight, grad_norm_bias = parts[0].split(sizes)
        grad_squeeze, grad_spatial = grad_squeeze.view(squeezed, -1), grad_spatial.view(squeezed, -1)
        return (
            grad_x,
            grad_norm_weight.clone(),
            grad_norm_bias.clone(),
            grad_proj_in.view(channels, pitch)[:, :channels].reshape(proj_in.shape),
            grad_squeeze[:, :channels].reshape(squeeze_weight.shape),
            grad_squeeze[:, channels].clone(),
            grad_spatial[:, :taps].reshape(spatial_weight.shape),
            grad_spatial[:, taps].clone(),
            grad_filter_weight.view_as(filter_weight),
            grad_filter_bias,
            grad_proj_out,
            None,
        )


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


class _ChannelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out, activation, topk_ratio):
        x, *weights = (t.contiguous() for t in (x, norm_weight, norm_bias, qkv_weight, depthwise))
        batch, channels, height, width = x.shape
        qkv = x.new_empty(batch, 3 * channels, height, width)
        call("projected_depthwise", (x, *weights, qkv), (batch, channels, 3 * channels, height, width))
        q, k, v = qkv.flatten(2).chunk(3, 1)
        # What is small is left to autograd: from sums over all pixels to the matrix that is applied to each.
        gram = torch.bmm(q, k.transpose(1, 2)).requires_grad_()
        q_norms, k_norms = (torch.linalg.vector_norm(t, dim=2).requires_grad_() for t in (q, k))
        temperature, proj_out = (t.detach().requires_grad_() for t in (temperature, proj_out))
        ctx.small = (gram, q_norms, k_norms, temperature, proj_out)
        with torch.enable_grad():
            ctx.mixing = mixing_matrices(gram, q_norms, k_norms, temperature, proj_out, activation, topk_ratio)
        ctx.save_for_backward(x, *weights, qkv)
        return _project(x, ctx.mixing.detach(), v)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *layer, qkv = ctx.saved_tensors
        channels, heads = grad.shape[1], len(ctx.small[3])
        v = qkv.flatten(2)[:, 2 * channels :]
        grad_mixing = torch.bmm(grad.flatten(2), v.transpose(1, 2))
        grads = torch.autograd.grad(ctx.mixing, ctx.small, grad_mixing, retain_graph=True)
        grad_gram, grad_query_norms, grad_key_norms, grad_temperature, grad_proj_out = grads

        # A norm's gradient is its channel divided by it, and 0 where it is 0.
        of_squares = [
            torch.diag_embed(torch.where(n > 0, g / n, 0.0).unflatten(1, (heads, -1)))
            for g, n in zip((grad_query_norms, grad_key_norms), ctx.small[1:3], strict=True)
        ]
        gram = in_heads(grad_gram, heads)
        of_similarities = torch.stack([of_squares[0], gram, gram.transpose(2, 3), of_squares[1]], 2)
        more = (qkv, of_similarities, ctx.mixing.detach().transpose(1, 2).contiguous())
        grad_x, _, parts = _gradients("channel_attention_backward", grad, layer, more, heads, 0)
        return grad_x, *parts, grad_temperature, grad_proj_out, None, None


def _project(x: Tensor, matrices: Tensor, features: Tensor) -> Tensor:
    """x + matrices [B, C, C] @ features, both [B, C, H, W]."""
    return torch.baddbmm(x.flatten(2), matrices, features.flatten(2)).view_as(x)


def _gradients(
    function: str, grad: Tensor, layer: list[Tensor], more: tuple[Tensor, ...], size: int, more_rows: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Call the backward pass `function` of a layer that begins with ``depthwise(proj(norm(x)))``.

    Args:
        layer: x, norm_weight, norm_bias, proj and depthwise.
        more: what the function takes beyond these.
        size: its hidden size, or heads.
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
