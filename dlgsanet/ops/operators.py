"""The dynamic depth-wise convolution as `torch.library` operators.

Autograd, torch.compile and export see one opaque node. Inside, `dispatch.select` chooses the backend.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.autocast import in_autocast_dtype
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.gradients import convolve
from dlgsanet.ops.records import Convolution, DynamicConv, FusedDynamicConv
from dlgsanet.ops.transforms import is_traced, is_transformed


def dynamic_depthwise_conv(x: Tensor, filters: Tensor, *, backend: str | None = None) -> Tensor:
    """Filter every pixel with its own K x K filter; the C // G channels of a group share it.

    ``out[b, c, y, x] = sum_ij filters[b, c // (C // G), i, j, y, x] * x[b, c, y + i - K // 2, x + j - K // 2]``,
    zero outside the image.

    Args:
        x: [B, C, H, W], any float dtype.
        filters: [B, G, K, K, H, W] of the same dtype; K odd, C divisible by G.
        backend: the name of the backend to use; None: the fastest that supports the call. It has no effect while a
            graph is traced (torch.compile, export): the operator chooses its backend when the graph runs. It has none
            within `torch.func` either, where the plain definition is used.

    Returns:
        [B, C, H, W] in the dtype of x; sums are formed in float32 (float64 for float64).

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend is unknown or does not support the call.

    Source: Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution", ICLR 2022.
    """
    if _is_traced(x, filters):
        return in_autocast_dtype(torch.ops.dlgsanet.dynamic_depthwise_conv, x, filters)

    def on_backend(x: Tensor, filters: Tensor) -> Tensor:
        _check(x, filters)
        return _convolve_on(backend, DynamicConv(filters), x)

    return in_autocast_dtype(on_backend, x, filters)


def fused_dynamic_depthwise_conv(
    x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int, *, backend: str | None = None
) -> Tensor:
    """`dynamic_depthwise_conv` with filters that a 1x1 convolution forms from z: ``filters = weight @ z + bias``.

    Args:
        x: [B, C, H, W], any float dtype.
        z: [B, D, H, W] of the same dtype.
        weight: [G * K * K, D], where C is divisible by G; its dtype may be wider than that of x.
        bias: [G * K * K] or None.
        window_size: K, odd.
        backend: as in `dynamic_depthwise_conv`.

    Returns:
        [B, C, H, W] in the dtype of x.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend is unknown or does not support the call.

    Source: DLGSANet, section 3.2 (MHDLSA).
    """
    if _is_traced(x, z, weight, bias):
        return in_autocast_dtype(torch.ops.dlgsanet.fused_dynamic_depthwise_conv, x, z, weight, bias, window_size)

    def on_backend(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
        _check_fused(x, z, weight, bias, window_size)
        return _convolve_on(backend, FusedDynamicConv(z, weight, bias, window_size), x)

    return in_autocast_dtype(on_backend, x, z, weight, bias, window_size)


def _is_traced(*tensors: Tensor | None) -> bool:
    """Whether a graph is traced, or tensors are not plain ones. Otherwise a call need not pass through `torch.ops`."""
    plain = (Tensor, torch.nn.Parameter, type(None))
    return is_traced() or any(type(t) not in plain for t in tensors)


def _convolve_on(backend: str | None, convolution: Convolution, x: Tensor) -> Tensor:
    if is_transformed():
        return reference.PLAIN.convolve(convolution, x)
    if backend is None:
        return convolve(None, convolution, x)
    return convolve(dispatch.select(convolution, x, backend=backend).functions(type(convolution)), convolution, x)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(x: Tensor, filters: Tensor) -> None:
    _require(x.dim() == 4, f"x must be [B, C, H, W], got {list(x.shape)}")
    _require(filters.dim() == 6, f"filters must be [B, G, K, K, H, W], got {list(filters.shape)}")
    batch, groups, window_size, width_of_window, *size = filters.shape
    _require(
        (batch, *size) == (x.shape[0], *x.shape[2:]) and window_size == width_of_window,
        f"filters {list(filters.shape)} do not fit x {list(x.shape)}: they must be [B, G, K, K, H, W]",
    )
    _require(window_size % 2 == 1, f"the window size must be odd, got {window_size}")
    _require(x.shape[1] % groups == 0, f"{x.shape[1]} channels cannot be divided into {groups} groups")
    _require(x.is_floating_point() and x.dtype == filters.dtype, "x and filters must have one float dtype")


def _check_fused(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> None:
    _require(x.dim() == 4, f"x must be [B, C, H, W], got {list(x.shape)}")
    _require(
        z.dim() == 4 and z.shape[0] == x.shape[0] and z.shape[2:] == x.shape[2:],
        f"z must be [B, D, H, W] with B, H, W of x {list(x.shape)}, got {list(z.shape)}",
    )
    _require(window_size > 0 and window_size % 2 == 1, f"the window size must be odd, got {window_size}")
    outputs = weight.shape[0]
    _require(
        weight.dim() == 2 and weight.shape[1] == z.shape[1] and outputs > 0 and outputs % window_size**2 == 0,
        f"weight must be [G * {window_size**2}, {z.shape[1]}], got {list(weight.shape)}",
    )
    groups = outputs // window_size**2
    _require(x.shape[1] % groups == 0, f"{x.shape[1]} channels cannot be divided into {groups} groups")
    _require(bias is None or list(bias.shape) == [outputs], f"bias must be [{outputs}]")
    _require(x.is_floating_point() and x.dtype == z.dtype, "x and z must have one float dtype")


def _check_grad(grad: Tensor, x: Tensor) -> None:
    _require(
        (grad.shape, grad.dtype, grad.device) == (x.shape, x.dtype, x.device),
        f"the gradient must have shape, dtype and device of x, got {list(grad.shape)} for {list(x.shape)}",
    )


# Backends may return any layout, for example views of padded tensors. The fake operators return contiguous tensors and
# compiled code relies on that, so results are made contiguous.


@torch.library.custom_op("dlgsanet::dynamic_depthwise_conv", mutates_args=())
def _plain(x: Tensor, filters: Tensor) -> Tensor:
    _check(x, filters)
    convolution = DynamicConv(filters)
    return dispatch.select(convolution, x).convolve(convolution, x).contiguous()


@_plain.register_fake
def _(x: Tensor, filters: Tensor) -> Tensor:
    _check(x, filters)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("dlgsanet::dynamic_depthwise_conv_backward", mutates_args=())
def _plain_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    _check(x, filters)
    _check_grad(grad, x)
    convolution = DynamicConv(filters)
    grad_x, grad_filters = dispatch.select(convolution, x, training=True).convolve_backward(convolution, x, grad)
    return grad_x.contiguous(), grad_filters.contiguous()


@_plain_backward.register_fake
def _(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, filters))


@torch.library.custom_op("dlgsanet::fused_dynamic_depthwise_conv", mutates_args=())
def _fused(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    _check_fused(x, z, weight, bias, window_size)
    convolution = FusedDynamicConv(z, weight, bias, window_size)
    return dispatch.select(convolution, x).convolve(convolution, x).contiguous()


@_fused.register_fake
def _(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    _check_fused(x, z, weight, bias, window_size)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("dlgsanet::fused_dynamic_depthwise_conv_backward", mutates_args=())
def _fused_backward(
    grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_fused(x, z, weight, bias, window_size)
    _check_grad(grad, x)
    convolution = FusedDynamicConv(z, weight, bias, window_size)
    grads = dispatch.select(convolution, x, training=True).convolve_backward(convolution, x, grad)
    grad_x, grad_z, grad_weight, grad_bias = (g.contiguous() for g in grads)
    return grad_x, grad_z, grad_weight, grad_bias


@_fused_backward.register_fake
def _(grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> tuple[Tensor, ...]:
    grad_bias = weight.new_empty(weight.shape[0]) if bias is None else torch.empty_like(bias)
    grads = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, z, weight))
    return (*grads, grad_bias)


def _save_plain(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_plain(ctx: Any, grad: Tensor) -> Any:
    return torch.ops.dlgsanet.dynamic_depthwise_conv_backward(grad.contiguous(), *ctx.saved_tensors)


def _save_fused(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    *tensors, ctx.window_size = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_fused(ctx: Any, grad: Tensor) -> Any:
    x, z, weight, bias = ctx.saved_tensors
    *grads, grad_bias = torch.ops.dlgsanet.fused_dynamic_depthwise_conv_backward(
        grad.contiguous(), x, z, weight, bias, ctx.window_size
    )
    return (*grads, None if bias is None else grad_bias, None)


_plain.register_autograd(_differentiate_plain, setup_context=_save_plain)
_fused.register_autograd(_differentiate_fused, setup_context=_save_fused)
