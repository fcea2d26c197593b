"""Whole layers: `apply` computes a record by the backend that serves here."""

import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import composed
from dlgsanet.ops.records import Layer, tensors_of


def apply(layer: Layer, x: Tensor, *, backend: str | None = None) -> Tensor:
    """A layer with its normalisation and residual connection: ``x + layer(norm(x))``.

    While a graph is traced (torch.compile, export) the layer becomes PyTorch's operations around the operator of the
    dynamic convolution, which chooses its backend when the graph runs; `backend` has no effect then.

    Args:
        layer: a record of `dlgsanet.ops.records`, which says what it computes and which shapes it holds.
        x: [B, C, H, W].
        backend: the name of the backend to use; None: the fastest that takes the call, see `dlgsanet.ops.dispatch`.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: `backend` is unknown, or does not take the call.
        UserError: ``DLGSANET_BACKEND`` names no backend.
    """
    if torch.compiler.is_compiling():
        return composed.BACKEND.train(layer, x)
    training = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors_of(layer)))
    chosen = dispatch.select(layer, x, training, backend)
    return chosen.train(layer, x) if training else chosen.infer(layer, x)
