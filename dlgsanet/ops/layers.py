"""Whole layers as functions on tensors, so that a backend can take one layer in a single piece.

Every function is ``x + layer(norm(x))``, computed by the fastest backend that takes it. While gradients are wanted
that is the backend's ``differentiable_`` layer, composed of operations that autograd can follow, whose dynamic
convolution still has its own backends; while a graph is traced (torch.compile, export), the reference's.
"""

import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import reference


def _dispatch(operation: str, x: Tensor, *args) -> Tensor:
    tensors = (x, *(a for a in args if isinstance(a, Tensor)))
    if torch.compiler.is_compiling():
        return getattr(reference, operation)(x, *args)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        operation = f"differentiable_{operation}"
    return getattr(dispatch.select(operation, x, *args), operation)(x, *args)


def dynamic_local_attention(
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
    """Multi-head dynamic local self-attention, pre-norm and residual (DLGSANet, section 3.2).

    ``y = proj_in(norm(x)); z = depthwise_KxK(conv1x1(y)); x + proj_out(fused_dynamic_depthwise_conv(y, z, ...))``

    Args:
        x: [B, C, H, W].
        norm_weight, norm_bias: [C], of the normalisation over channels.
        proj_in, proj_out: [C, C, 1, 1].
        squeeze_weight, squeeze_bias: [D, C, 1, 1] and [D].
        spatial_weight, spatial_bias: [D, 1, K, K] and [D].
        filter_weight, filter_bias: [G * K * K, D, 1, 1] and [G * K * K].
        window_size: K, odd.

    Returns:
        [B, C, H, W].
    """
    return _dispatch(
        "dynamic_local_attention", x, norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias,
        spatial_weight, spatial_bias, filter_weight, filter_bias, proj_out, window_size,
    )  # fmt: skip


def channel_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
    window: int | None,
) -> Tensor:
    """(Sparse) global self-attention between channels, pre-norm and residual (DLGSANet, section 3.3).

    Args:
        x: [B, C, H, W].
        norm_weight, norm_bias: [C].
        qkv_weight, depthwise: [3 * C, C, 1, 1] and [3 * C, 1, 3, 3].
        temperature: [heads, 1, 1].
        proj_out: [C, C, 1, 1].
        activation: how similarities become weights: relu, gelu, sigmoid, softmax or topk.
        topk_ratio: for topk, the share of each row's similarities that is kept, in (0, 1].
        window: side in pixels of the windows of test-time local conversion, or None: the whole image at once.

    Returns:
        [B, C, H, W].
    """
    return _dispatch(
        "channel_attention", x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out,
        activation, topk_ratio, window,
    )  # fmt: skip


def gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    """Gated depth-wise feed-forward network, pre-norm and residual (Restormer, section 3.2).

    ``a, b = depthwise_3x3(proj_in(norm(x))); x + proj_out(gelu(a) * b)``

    Args:
        x: [B, C, H, W].
        norm_weight, norm_bias: [C].
        proj_in, depthwise, proj_out: [2 * h, C, 1, 1], [2 * h, 1, 3, 3] and [C, h, 1, 1].

    Returns:
        [B, C, H, W].
    """
    return _dispatch("gated_feed_forward", x, norm_weight, norm_bias, proj_in, depthwise, proj_out)
