"""Channel attention as one matrix per set of pixels, which combines the attention weights and the output projection."""

import torch
from torch import Tensor

from dlgsanet.ops.backends.reference import select_similarities
from dlgsanet.ops.constants import NORMALIZE_EPS
from dlgsanet.ops.records import ChannelAttention


def in_heads(matrices: Tensor, heads: int) -> Tensor:
    """[n, C, C] -> [n, heads, c, c]: the blocks on the diagonal, the queries and keys of one head each."""
    blocks = matrices.unflatten(2, (heads, -1)).unflatten(1, (heads, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def mixing_matrices(layer: ChannelAttention, gram: Tensor, query_norms: Tensor, key_norms: Tensor) -> Tensor:
    """Matrices [n, C, C] that map values to the projected output of the attention: proj_out times the heads' weights.

    Args:
        layer: supplies the temperature, the output projection and the activation.
        gram: [n, heads, c, c], products of the query channels (rows) and key channels of each head, summed over each
            of n sets of pixels.
        query_norms, key_norms: [n, C], the L2 norms of the channels over the same pixels.
    """
    heads, channels = len(layer.temperature), query_norms.shape[-1]
    rows = query_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, -1, 1))
    columns = key_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, 1, -1))
    similarities = gram / rows / columns * layer.temperature
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    projection = layer.proj_out.flatten(1).unflatten(1, (heads, -1))  # [C, heads, c]
    return torch.einsum("ohc,nhck->nohk", projection, weights.to(projection.dtype)).reshape(-1, channels, channels)
