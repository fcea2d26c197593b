"""Whole layers: `apply` computes a record with the backend that `dispatch` chooses."""

from collections.abc import Callable

import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import Backend, reference
from dlgsanet.ops.records import Conv3x3, Layer, tensors_of
from dlgsanet.ops.transforms import is_traced, is_transformed


def apply(layer: Layer | Conv3x3, x: Tensor, *, backend: str | None = None) -> Tensor:
    """Compute a layer: those of blocks with their normalisation and residual connection, ``x + layer(norm(x))``.

    While a graph is traced (torch.compile, export), the layer becomes PyTorch's operations around the operator of the
    dynamic convolution. That operator chooses its backend when the graph runs, and `backend` has no effect. Within
    `torch.func` and forward-mode differentiation the layer is its plain definition.

    Args:
        layer: a record of `dlgsanet.ops.records`, where its computation and shapes are documented.
        x: [B, C, H, W].
        backend: the name of the backend to use; None: the fastest that supports the call, see `dlgsanet.ops.dispatch`.

    Returns:
        [B, C, H, W]; of a convolution see its record.

    Raises:
        ValueError: `backend` is unknown, or does not support the call.
        ValueError, RuntimeError: the record's tensors and x do not fit each other.
        UserError: ``DLGSANET_BACKEND`` is neither the name of a backend nor ``-NAME``.
    """
    if is_traced():
        return dispatch.traced().train(layer, x)
    if is_transformed():
        return reference.PLAIN.train(layer, x)
    training = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors_of(layer)))
    chosen = _chosen(layer, x, training) if backend is None else dispatch.select(layer, x, training, backend)
    return chosen.train(layer, x) if training else chosen.infer(layer, x)


def _chosen(layer: Layer | Conv3x3, x: Tensor, training: bool = False) -> Backend:
    return dispatch.faster(dispatch.select(layer, x, training), layer, x, training)


def add_convolution(layer: Conv3x3, x: Tensor, to: Tensor) -> None:
    """``to += apply(layer, x)`` without gradients; to [B, O, H, W] must not be x."""
    if add := _addition(layer, x, to):
        add(layer, x, to)
    else:
        to += apply(layer, x)


def adds_in_place(layer: Conv3x3, x: Tensor, to: Tensor) -> bool:
    """Whether `add_convolution` needs little memory."""
    return _addition(layer, x, to) is not None


def _addition(layer: Conv3x3, x: Tensor, to: Tensor) -> Callable[[Conv3x3, Tensor, Tensor], None] | None:
    layer = layer._replace(to=to)
    return _chosen(layer, x).add_convolution


def bounds_memory(layer: Layer | Conv3x3, x: Tensor) -> bool:
    """Whether the backend for a call without gradients needs little memory but for the result."""
    return dispatch.select(layer, x).bounds_memory


def keeps_x_alone(layer: Layer, x: Tensor) -> bool:
    """Whether the layer, where it is trained, keeps only its input and parameters for the backward pass."""
    return _chosen(layer, x, training=True).keeps_x_alone
