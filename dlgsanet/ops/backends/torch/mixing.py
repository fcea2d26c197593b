"""Channel attention as one matrix: selection and projection folded into what is applied to each pixel's values."""

import torch
from torch import Tensor

from dlgsanet.ops.backends.reference import select_similarities

NORMALIZE_EPS = 1e-12  # of torch.nn.functional.normalize


def in_heads(matrices: Tensor, heads: int) -> Tensor:
    """[n, C, C] -> [n, heads, c, c], the blocks on the diagonal: each head's own channels."""
    blocks = matrices.unflatten(2, (heads, -1)).unflatten(1, (heads, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def mixing_matrices(
    gram: Tensor,
    query_norms: Tensor,
    key_norms: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
) -> Tensor:
    """Matrices [n, C, C] that turn values into the attention's projected output: proj_out times the heads' weights.

    Args:
        gram: [n, C, C], products of each query channel (row) with each key channel over n sets of pixels; those of
            different heads are not read.
        query_norms, key_norms: [n, C], the L2 norms of the channels over those pixels.
        temperature: [heads, 1, 1].
        proj_out: [C, C, 1, 1].
        activation, topk_ratio: see `dlgsanet.ops.backends.reference.select_similarities`.
    """
    heads, channels = len(temperature), gram.shape[-1]
    rows = query_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, -1, 1))
    columns = key_norms.clamp_min(NORMALIZE_EPS).unflatten(1, (heads, 1, -1))
    weights = select_similarities(in_heads(gram, heads) / rows / columns * temperature, activation, topk_ratio)
    projection = proj_out.flatten(1).unflatten(1, (heads, -1))  # [C, heads, c]
    return torch.einsum("ohc,nhck->nohk", projection, weights.to(projection.dtype)).reshape(-1, channels, channels)
