"""The attention of a DLGSANet for an image: the similarities that SparseGSA keeps, and the filters of MHDLSA."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.errors import NOT_FINITE, UserError
from dlgsanet.evaluation.memory import enough_memory
from dlgsanet.ops.windows import covering_windows

Layer = TypeVar("Layer", bound=nn.Module)


@torch.inference_mode()
def kept_shares(network: nn.Module, image: Tensor) -> Tensor:
    """The share of similarities with a weight other than 0: [layers, heads] in [0, 1], on the CPU.

    Args:
        network: a DLGSANet with SparseGSA layers, in evaluation mode. All TLC windows have the same weight.
        image: [1, 3, H, W] in [0, 1].

    Raises:
        UserError: the network has no such layer, or values overflow.
    """
    shares = []
    for layer, x in _inputs(network, image, SparseGSA):
        weights = ops.select_similarities(_similarities(layer, x), layer.activation, layer.topk_ratio)
        shares.append((weights != 0).float().mean((0, 2, 3)).cpu())
    return torch.stack(shares)


@torch.inference_mode()
def filters_at(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> Tensor:
    """MHDLSA's filters at the LR pixels (x, y): [points, layers, G, K, K], on the CPU.

    Raises:
        UserError: the network has no such layer, or values overflow.
    """
    columns, rows = torch.tensor(points, device=image.device).unbind(1)
    layers = []
    for layer, x in _inputs(network, image, MHDLSA):
        z = layer.spatial(layer.squeeze(layer.proj_in(layer.norm(x))))
        filters = layer.filters(z[:, :, rows, columns].unsqueeze(2))[0, :, 0]  # [G * K * K, points]
        size = (-1, layer.window_size, layer.window_size)
        layers.append(filters.T.unflatten(1, size).float().cpu())
    return torch.stack(layers, 1)


def _inputs(network: nn.Module, image: Tensor, kind: type[Layer]) -> list[tuple[Layer, Tensor]]:
    """Every layer of a kind, in the order of computation, with its input."""
    seen: list[tuple[Layer, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0])))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    if not handles:
        raise UserError(f"the network has no {kind.__name__} layers")
    try:
        with enough_memory(network, image.shape, image.device):
            if not network(image).isfinite().all():
                raise UserError(NOT_FINITE)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _similarities(layer: SparseGSA, x: Tensor) -> Tensor:
    """[TLC windows, heads, c, c] before the selection (SparseGSA, section 3.3)."""
    qk = layer.depthwise(layer.qkv(layer.norm(x))).chunk(3, 1)[:2]
    window = layer.tlc_kernel or max(x.shape[2:])
    rows, columns = (covering_windows(size, window, x.device) for size in x.shape[2:])
    similarities = []
    for row in rows:
        for column in columns:
            q, k = (t[:, :, row][..., column].flatten(2)[0] for t in qk)
            q, k = (F.normalize(t.unflatten(0, (len(layer.temperature), -1)), dim=-1) for t in (q, k))
            similarities.append(q @ k.mT * layer.temperature)
    return torch.stack(similarities)
