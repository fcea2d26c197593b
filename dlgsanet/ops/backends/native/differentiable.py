"""Layers for training. They keep little more than their input; the backward pass computes the rest again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.native.dynamic_conv import (
    fused_dynamic_depthwise_conv,
    fused_dynamic_depthwise_conv_backward,
)
from dlgsanet.ops.backends.native.layers import convolution as infer_convolution
from dlgsanet.ops.backends.native.layers import gated_feed_forward as infer_gated_feed_forward
from dlgsanet.ops.backends.native.layers import sizes_of, weights_of
from dlgsanet.ops.backends.native.signatures import round_up, strips
from dlgsanet.ops.backends.torch.mixing import mixing_matrices
from dlgsanet.ops.records import ChannelAttention, Conv3x3, FusedDynamicConv, GatedFeedForward, LocalAttention


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return _DynamicLocalAttention.apply(x, *layer)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    return _GatedFeedForward.apply(x, *layer)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    return _ChannelAttention.apply(x, *layer)


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    return _Convolution.apply(x, *layer)


# Each takes x and the fields of a record as separate arguments, as autograd requires, and returns their gradients.


class _DynamicLocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        layer, x = LocalAttention(*fields), x.contiguous()
        weights = weights_of(layer)
        filter_weight, filter_bias, proj_out = (weights.pop(n) for n in ("filter_weight", "filter_bias", "proj_out"))
        batch, _, height, width = x.shape
        y, z = torch.empty_like(x), x.new_empty(batch, len(layer.squeeze_weight), height, width)
        ctx.sizes = {"squeezed": z.shape[1], "window_size": layer.window_size, **sizes_of(x)}
        library.call("local_features", x=x, **weights, y=y, z=z, **ctx.sizes)
        filtered = fused_dynamic_depthwise_conv(
            FusedDynamicConv(z, filter_weight.flatten(1), filter_bias, layer.window_size), y
        )
        ctx.save_for_backward(x, *fields[:-1], y, z, filtered)
        return _project(x, proj_out.flatten(1).expand(batch, -1, -1), filtered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *fields, y, z, filtered = ctx.saved_tensors
        layer, grad = LocalAttention._make([*fields, ctx.sizes["window_size"]]), grad.contiguous()
        batch = len(x)
        pixels = grad.flatten(2)
        grad_proj_out = _products(grad, filtered).sum(0).view_as(layer.proj_out)
        grad_filtered = torch.bmm(layer.proj_out.flatten(1).t().expand(batch, -1, -1), pixels).view_as(x)
        convolution = FusedDynamicConv(z, layer.filter_weight.flatten(1), layer.filter_bias, layer.window_size)
        grad_y, grad_z, grad_filter_weight, grad_filter_bias = fused_dynamic_depthwise_conv_backward(
            convolution, y, grad_filtered
        )
        grads = _local_features_gradients(layer, ctx.sizes, grad=grad, grad_y=grad_y, grad_z=grad_z, x=x, y=y)
        return *grads, grad_filter_weight.view_as(layer.filter_weight), grad_filter_bias, grad_proj_out, None


def _local_features_gradients(layer: LocalAttention, sizes: dict[str, int], **images: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x and of the tensors up to spatial_bias, from the gradients of the layer's result, y and z."""
    weights, grad_x = weights_of(layer), torch.empty_like(images["x"])
    channels, squeezed, taps = sizes["channels"], sizes["squeezed"], layer.window_size**2
    pitch, squeeze_pitch = round_up(channels), round_up(channels + 1)
    parts_of = (channels * pitch, squeezed * squeeze_pitch, squeezed * (taps + 1), channels, channels)
    parts = torch.zeros(strips(sizes["batch"], sizes["height"]), sum(parts_of))
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
        grad_squeeze[:, channels].clone(),
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
        weights = weights_of(layer)
        normed = {n: weights[n] for n in ("norm_weight", "norm_bias", "depthwise")}
        batch, channels, height, width = x.shape
        qkv = x.new_empty(batch, 3 * channels, height, width)
        library.call(
            "projected_depthwise",
            x=x, **normed, proj=weights["qkv_weight"], out=qkv, hidden=3 * channels, **sizes_of(x),
        )  # fmt: skip
        q, k, v = qkv.flatten(2).chunk(3, 1)
        # Autograd handles the small part, from the sums over all pixels to the matrix that is applied to each pixel.
        heads = len(layer.temperature)
        gram = _products(qkv, qkv, heads, channels // heads, b_first=channels).requires_grad_()
        q_norms, k_norms = (torch.linalg.vector_norm(t, dim=2).requires_grad_() for t in (q, k))
        temperature, proj_out = (t.detach().requires_grad_() for t in (layer.temperature, layer.proj_out))
        ctx.small = (gram, q_norms, k_norms, temperature, proj_out)
        with torch.enable_grad():
            layer = layer._replace(temperature=temperature, proj_out=proj_out)
            ctx.mixing = mixing_matrices(layer, gram, q_norms, k_norms)
        ctx.save_for_backward(x, layer.norm_weight, layer.norm_bias, layer.qkv_weight, layer.depthwise, qkv)
        return _project(x, ctx.mixing.detach(), v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *normed, qkv = ctx.saved_tensors
        channels, heads = grad.shape[1], len(ctx.small[3])
        grad_mixing = _products(grad.contiguous(), qkv, b_first=2 * channels).squeeze(1)
        grads = torch.autograd.grad(ctx.mixing, ctx.small, grad_mixing, retain_graph=True)
        grad_gram, grad_query_norms, grad_key_norms, grad_temperature, grad_proj_out = grads

        # The gradient of a norm is its channel divided by the norm, and 0 where the norm is 0.
        of_squares = [
            torch.diag_embed(torch.where(n > 0, g / n, 0.0).unflatten(1, (heads, -1)))
            for g, n in zip((grad_query_norms, grad_key_norms), ctx.small[1:3], strict=True)
        ]
        more: dict[str, Any] = {
            "qkv": qkv,
            "of_similarities": torch.stack([of_squares[0], grad_gram, grad_gram.mT, of_squares[1]], 2),
            "mixing_transposed": ctx.mixing.detach().transpose(1, 2).contiguous(),
            "heads": heads,
        }
        grad_x, _, parts = _gradients("channel_attention_backward", grad, x, normed, 0, **more)
        return grad_x, *parts, grad_temperature, grad_proj_out, None, None, None


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
        parts = torch.zeros(strips(batch, height), 4, 3, outputs, round_up(channels + 1))
        library.call(
            "convolution_backward", grad=grad, x=x.contiguous(), parts=parts, outputs=outputs, **sizes_of(x)
        )  # fmt: skip
        # Of filters with the rows e, f, g these are the gradients of e, (e + f + g) / 2, (e - f + g) / 2 and -g.
        first, plus, minus, last = parts[0, ..., :channels]
        rows = [first + (plus + minus) / 2, (plus - minus) / 2, (plus + minus) / 2 - last]
        grad_bias = parts[0, 1, 1, :, channels].clone() if ctx.needs_input_grad[2] else None
        return grad_x, torch.stack(rows).permute(2, 3, 0, 1).contiguous(), grad_bias


def _project(x: Tensor, matrices: Tensor, features: Tensor) -> Tensor:
    """x + matrices [B, C, C] @ features, both [B, C, H, W]."""
    return torch.baddbmm(x.flatten(2), matrices, features.flatten(2)).view_as(x)


def _products(a: Tensor, b: Tensor, blocks: int = 1, channels: int | None = None, b_first: int = 0) -> Tensor:
    """Products of channels, summed over pixels: [B, blocks, channels, channels].

    A BLAS would divide these sums among its threads, and the result would depend on the number of threads.

    Args:
        a, b: [B, channels of a, H, W] and [B, channels of b, H, W], contiguous.
        blocks: of channels of a, from the first one on, and as many of b, from `b_first` on; block with block.
        channels: of a block; None: all of a.
    """
    batch, a_channels, height, width = a.shape
    channels = channels or a_channels
    parts = torch.empty(strips(batch, height), blocks, channels, channels)
    library.call(
        "products",
        a=a,
        b=b,
        parts=parts,
        batch=batch,
        a_channels=a_channels,
        a_first=0,
        b_channels=b.shape[1],
        b_first=b_first,
        blocks=blocks,
        rows=channels,
        columns=channels,
        height=height,
        width=width,
    )
    return parts.unflatten(0, (batch, -1))[:, 0]


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
    parts = torch.zeros(strips(batch, height), sum(parts_of))
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
