"""Whole layers for inference."""

import functools
import itertools

import torch
from torch import Tensor

from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.native.library import call
from dlgsanet.ops.windows import window_starts


def gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    weights = (norm_weight, norm_bias, proj_in, depthwise, proj_out)
    x, *rest = (t.contiguous() for t in (x, *weights))
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    call("gated_feed_forward", (x, *rest, out), (batch, channels, proj_out.shape[1], height, width))
    return out


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
    weights = (
        norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias,
        spatial_weight, spatial_bias, filter_weight, filter_bias, proj_out,
    )  # fmt: skip
    x, *rest = (t.contiguous() for t in (x, *weights))
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    groups = filter_weight.shape[0] // window_size**2
    sizes = (batch, channels, squeeze_weight.shape[0], groups, window_size, height, width)
    call("dynamic_local_attention", (x, *rest, out), sizes)
    return out


TILE_FLOATS = 100 * 1024  # of scratch memory a thread, so that it stays in the second-level cache
BAND = 16  # rows whose products of q and k are summed up first, whatever the threads


@functools.lru_cache(maxsize=64)
def _pieces(size: int, window: int, multiple: int) -> Tensor:
    """[pieces, 4]: first pixel, last + 1, first window, last window of the pieces that an axis falls into.

    Windows begin and end between pieces, and no piece crosses a multiple of `multiple`.
    """
    window = min(size, window)
    starts = window_starts(size, window)
    edges = sorted({0, size, *starts, *(s + window for s in starts), *range(0, size, multiple)})
    pieces = []
    for start, stop in itertools.pairwise(edges):
        covering = [n for n, s in enumerate(starts) if s <= start < s + window]
        pieces.append((start, stop, covering[0], covering[-1]))
    return torch.tensor(pieces, dtype=torch.int64)


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
    weights = (norm_weight, norm_bias, qkv_weight, depthwise, proj_out)
    x, norm_weight, norm_bias, qkv_weight, depthwise, proj_out = (t.contiguous() for t in (x, *weights))
    batch, channels, height, width = x.shape
    heads, window = len(temperature), window or max(height, width)
    tile_width = max(64, TILE_FLOATS // (22 * channels) // 16 * 16)
    bands, columns = _pieces(height, window, BAND), _pieces(width, window, tile_width)
    sizes = (batch, channels, heads, height, width, len(bands), len(columns))

    c = channels // heads
    sums = channels * c + 2 * channels
    windows = [int(pieces[-1, 3]) + 1 for pieces in (bands, columns)]
    v, piece_sums = torch.empty_like(x), torch.empty(batch, len(bands), len(columns), sums)
    window_sums = torch.empty(batch, *windows, sums)
    call(
        "channel_attention_sums",
        (x, norm_weight, norm_bias, qkv_weight, depthwise, bands, columns, v, piece_sums, window_sums),
        (*sizes, tile_width),
    )
    products, squares = window_sums.split([channels * c, 2 * channels], -1)
    norms = squares.sqrt().clamp_min(1e-12).unflatten(-1, (2, heads, c))
    norm_q, norm_k = norms.unbind(-3)
    similarities = products.unflatten(-1, (heads, c, c)) / (norm_q.unsqueeze(-1) * norm_k.unsqueeze(-2)) * temperature
    attention = reference.select_similarities(similarities, activation, topk_ratio).contiguous()
    out = torch.empty_like(x)
    call("channel_attention_apply", (x, v, attention, proj_out, bands, columns, out), sizes)
    return out
