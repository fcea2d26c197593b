"""Channel attention as one matrix for each set of pixels: selection and output projection in one product."""

import torch
from torch import Tensor

from dlgsanet.ops.backends.reference import select_similarities
from dlgsanet.ops.records import ChannelAttention

NORMALIZE_EPS = 1e-12  # of torch.nn.functional.normalize


def in_heads(matrices: Tensor, heads: int) -> Tensor:
    """[n, C, C] -> [n, heads, c, c], the blocks on the diagonal: each head's own channels."""
    blocks = matrices.unflatten(2, (heads, -1)).unflatten(1, (heads, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def mixing_matrices(layer: ChannelAttention, gram: Tensor, query_norms: Tensor, key_norms: Tensor) -> Tensor:
    """Matrices [n, C, C] that turn values into the attention's projected output: proj_out times the heads' weights.

    Args:
        layer: its temperature, projection and selection are used.
        gram: [n, heads, c, c], products of each head's query channels (rows) with its key channels, summed over each
            of n sets of pixels.
        query_norms, key_norms: [n, C], the L2 norms of the channels over those pixels.
    """
    heads, channels = len(layer.temperature), query_norms.shape[-1]
    rows = query_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, -1, 1))
    columns = key_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, 1, -1))
    similarities = gram / rows / columns * layer.temperature
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    projection = layer.proj_out.flatten(1).unflatten(1, (heads, -1))  # [C, heads, c]
    return torch.einsum("ohc,nhck->nohk", projection, weights.to(projection.dtype)).reshape(-1, channels, channels)
