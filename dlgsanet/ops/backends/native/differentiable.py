"""Layers for training. They keep little more than their input; the backward pass computes the rest again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.native.layers import (
    attend,
    attention_sums,
    attention_weights,
    keeping_dynamic_local_attention,
    sizes_of,
    weights_of,
)
from dlgsanet.ops.backends.native.layers import convolution as infer_convolution
from dlgsanet.ops.backends.native.layers import gated_feed_forward as infer_gated_feed_forward
from dlgsanet.ops.backends.native.signatures import FILTER_FACTORS, round_up, strips
from dlgsanet.ops.records import ChannelAttention, Conv3x3, GatedFeedForward, LocalAttention


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return _DynamicLocalAttention.apply(x, *layer)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    return _GatedFeedForward.apply(x, *layer)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    return _ChannelAttention.apply(x, *layer)


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    """The convolution with its bias alone."""
    return _Convolution.apply(x, layer.weight, layer.bias)


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
        layer, grad = LocalAttention._make([*fields, ctx.window_size]), grad.contiguous()
        channels, squeezed, taps = x.shape[1], z.shape[1], layer.window_size**2
        groups = len(layer.filter_weight) // taps
        pitch, filter_pitch = round_up(channels), round_up(squeezed + 1)
        parts_of = (channels * pitch, groups * taps * filter_pitch)
        parts = x.new_zeros(strips(len(x), x.shape[2]), sum(parts_of))
        grad_y, grad_z = torch.empty_like(y), torch.empty_like(z)
        weight = layer.filter_weight.flatten(1).contiguous()
        library.call(
            "projected_dynamic_conv_backward",
            grad=grad,
            y=y,
            z=z,
            filtered=filtered,
            weight=weight,
            bias=layer.filter_bias.contiguous(),
            weight_transposed=weight.view(groups, taps, squeezed).transpose(1, 2).contiguous(),
            proj_out_transposed=layer.proj_out.flatten(1).t().contiguous(),
            grad_y=grad_y,
            grad_z=grad_z,
            parts=parts,
            inputs=squeezed,
            groups=groups,
            window_size=layer.window_size,
            **sizes_of(x),
        )
        grad_proj_out, grad_filter = parts[0].split(parts_of)
        grad_proj_out, grad_filter = grad_proj_out.view(channels, pitch), grad_filter.view(-1, filter_pitch)
        sizes = {"squeezed": squeezed, "window_size": layer.window_size, **sizes_of(x)}
        return (
            *_local_features_gradients(layer, sizes, grad=grad, grad_y=grad_y, grad_z=grad_z, x=x, y=y),
            grad_filter[:, :squeezed].reshape(layer.filter_weight.shape),
            grad_filter[:, squeezed].clone(),
            grad_proj_out[:, :channels].reshape(layer.proj_out.shape),
            None,
        )


def _local_features_gradients(layer: LocalAttention, sizes: dict[str, int], **images: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x and of the tensors up to spatial_bias, from the gradients of the layer's result, y and z."""
    weights, grad_x = weights_of(layer), torch.empty_like(images["x"])
    channels, squeezed, taps = sizes["channels"], sizes["squeezed"], layer.window_size**2
    pitch = round_up(channels)
    parts_of = (channels * pitch, squeezed * pitch, squeezed * (taps + 2), channels, channels)
    parts = images["x"].new_zeros(strips(sizes["batch"], sizes["height"]), sum(parts_of))
    names = ("norm_weight", "norm_bias", "proj_in", "squeeze_weight", "squeeze_bias")
    library.call(
        "local_features_backward",
        **images,
        **{name: weights[name] for name in names},
        proj_in_transposed=layer.proj_in.flatten(1).t().contiguous(),
        squeeze_transposed=layer.squeeze_weight.flatten(1).t().contiguous(),
        spatial_flipped=layer.spatial_weight.flatten(1).flip(1),
        grad_x=grad_x,
        parts=parts,
        **sizes,
    )
    grad_proj_in, grad_squeeze, grad_spatial, grad_norm_weight, grad_norm_bias = parts[0].split(parts_of)
    grad_squeeze, grad_spatial = grad_squeeze.view(squeezed, -1), grad_spatial.view(squeezed, -1)
    return (
        grad_x,
        grad_norm_weight.clone(),
        grad_norm_bias.clone(),
        grad_proj_in.view(channels, pitch)[:, :channels].reshape(layer.proj_in.shape),
        grad_squeeze[:, :channels].reshape(layer.squeeze_weight.shape),
        grad_spatial[:, taps + 1].clone(),
        grad_spatial[:, :taps].reshape(layer.spatial_weight.shape),
        grad_spatial[:, taps].clone(),
    )


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        ctx.save_for_backward(x, *fields)
        return infer_gated_feed_forward(GatedFeedForward(*fields), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *fields = ctx.saved_tensors
        layer = GatedFeedForward(*fields)
        half = layer.proj_out.shape[1]
        more: dict[str, Any] = {"half": half, "proj_out_transposed": layer.proj_out.flatten(1).t().contiguous()}
        normed = (layer.norm_weight, layer.norm_bias, layer.proj_in, layer.depthwise)
        grad_x, grad_proj_out, parts = _gradients("gated_feed_forward_backward", grad, x, normed, half, **more)
        return grad_x, *parts, grad_proj_out.t().reshape(layer.proj_out.shape)


class _ChannelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        layer, x = ChannelAttention(*fields), x.contiguous()
        v, products, norms, projected = attention_sums(layer, x, len(x))
        # Autograd handles the small part, from the sums over all pixels to the weights.
        ctx.small = tuple(t.detach().requires_grad_() for t in (products, norms, layer.temperature))
        with torch.enable_grad():
            ctx.weights = attention_weights(layer._replace(temperature=ctx.small[2]), *ctx.small[:2])
        ctx.save_for_backward(x, *fields[:4], layer.proj_out, projected)
        return attend(layer, x, v, ctx.weights.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, *normed, proj_out, projected), grad = ctx.saved_tensors, grad.contiguous()
        _, norms, _ = ctx.small
        weights = ctx.weights.detach()[:, 0, 0]
        batch, heads, c, _ = weights.shape
        channels, height = x.shape[1:3]
        parts = x.new_zeros(strips(batch, height), channels, round_up(channels))
        library.call(
            "channel_attention_mixing_backward",
            grad=grad, projected=projected, depthwise=normed[3].contiguous(), parts=parts, **sizes_of(x),
        )  # fmt: skip
        # The matrix that maps v to the result is, for each head, its columns of proj_out times its weights.
        grad_mixing = parts.unflatten(0, (batch, -1))[:, 0, :, :channels].unflatten(2, (heads, c))
        projection = proj_out.view(channels, heads, c)
        grad_weights = torch.einsum("ohc,nohk->nhck", projection, grad_mixing)
        grad_proj_out = torch.einsum("nohk,nhck->ohc", grad_mixing, weights).reshape(proj_out.shape)
        grads = torch.autograd.grad(ctx.weights, ctx.small, grad_weights[:, None, None], retain_graph=True)
        grad_products, grad_norms, grad_temperature = grads
        grad_products = grad_products[:, 0, 0]
        # The gradient of a norm is its channel divided by the norm, and 0 where the norm is 0.
        of_norms = torch.diag_embed(torch.where(norms > 0, grad_norms / norms, 0.0))[:, 0, 0]
        more: dict[str, Any] = {
            "projected": projected,
            "of_similarities": torch.stack([of_norms[:, 0], grad_products, grad_products.mT, of_norms[:, 1]], 2),
            "mixing_transposed": torch.einsum("ohc,nhck->nhko", projection, weights).reshape(-1, channels, channels),
            "heads": heads,
        }
        grad_x, _, grads_normed = _gradients("channel_attention_backward", grad, x, normed, 0, **more)
        return grad_x, *grads_normed, grad_temperature, grad_proj_out, None, None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        layer = Conv3x3(*fields)
        ctx.save_for_backward(x, layer.weight)
        return infer_convolution(layer, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, weight), grad = ctx.saved_tensors, grad.contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = infer_convolution(Conv3x3(weight.flip(2, 3).transpose(0, 1), None), grad)
        batch, channels, height, _ = x.shape
        outputs = len(weight)
        pitch = round_up(channels)
        parts = x.new_zeros(strips(batch, height), FILTER_FACTORS * outputs * pitch + outputs)
        library.call(
            "convolution_backward", grad=grad, x=x.contiguous(), parts=parts, outputs=outputs, **sizes_of(x)
        )  # fmt: skip
        # Of filters with the rows g, h, i these are the gradients of g, (g +- r h + 2 i) / 6, (2 g +- r h + i) / 3, i.
        grad_rows, grad_bias = parts[0].split([FILTER_FACTORS * outputs * pitch, outputs])
        first, p1, p2, p3, p4, last = grad_rows.view(6, 3, outputs, pitch)[..., :channels]
        rows = [
            first + (p1 + p2) / 6 + (p3 + p4) / 1.5,
            ((p1 - p2) / 6 + (p3 - p4) / 3) * 2**0.5,
            (p1 + p2 + p3 + p4) / 3 + last,
        ]
        grad_weight = torch.stack(rows).permute(2, 3, 0, 1).contiguous()
        return grad_x, grad_weight, grad_bias.clone() if ctx.needs_input_grad[2] else None


def _gradients(
    function: str, grad: Tensor, x: Tensor, normed: Sequence[Tensor], more_rows: int, **more: Tensor | int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Call `function`, the backward pass of a layer that begins with ``depthwise(proj(norm(x)))``.

    Args:
        normed: norm_weight, norm_bias, proj and depthwise.
        more_rows: rows of the gradient of the function's own matrix, which has C columns.
        more: further arguments of the function.

    Returns:
        The gradients of x, of the function's own matrix [more_rows, C], and of `normed`.
    """
    grad, x, norm_weight, norm_bias, proj, depthwise = (t.contiguous() for t in (grad, x, *normed))
    batch, channels, height, _ = x.shape
    hidden, pitch = len(proj), round_up(channels)
    parts_of = (more_rows * pitch, hidden * pitch, 9 * hidden, channels, channels)
    parts = x.new_zeros(strips(batch, height), sum(parts_of))
    grad_x = torch.empty_like(x)
    library.call(
        function,
        grad=grad,
        x=x,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        proj=proj,
        depthwise=depthwise,
        proj_transposed=proj.flatten(1).t().contiguous(),
        depthwise_flipped=depthwise.flatten(1).flip(1),
        grad_x=grad_x,
        parts=parts,
        **sizes_of(x),
        **more,
    )
    grad_more, grad_proj, grad_depthwise, grad_norm_weight, grad_norm_bias = parts[0].split(parts_of)
    grad_proj = grad_proj.view(hidden, pitch)[:, :channels].reshape(proj.shape)
    weights = [grad_norm_weight.clone(), grad_norm_bias.clone(), grad_proj, grad_depthwise.reshape(depthwise.shape)]
    return grad_x, grad_more.view(more_rows, pitch)[:, :channels], weights
