"""Whole layers for inference."""

import functools
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import constants
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.torch.mixing import NORMALIZE_EPS
from dlgsanet.ops.kept_memory import empty, empty_like
from dlgsanet.ops.records import ChannelAttention, Conv3x3, GatedFeedForward, Layer, LocalAttention
from dlgsanet.ops.windows import pieces


def sizes_of(x: Tensor) -> dict[str, int]:
    """The sizes of an image [B, C, H, W] by the names of `signatures.SIGNATURES`."""
    return dict(zip(("batch", "channels", "height", "width"), x.shape, strict=True))


def weights_of(layer: Layer | Conv3x3) -> dict[str, Tensor]:
    """A layer's tensors by name, contiguous."""
    return {name: value.contiguous() for name, value in layer._asdict().items() if isinstance(value, Tensor)}


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    x = x.contiguous()
    out = empty_like(x)
    library.call("gated_feed_forward", x=x, **weights_of(layer), out=out, half=layer.proj_out.shape[1], **sizes_of(x))
    return out


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    x = x.contiguous()
    out = empty_like(x)
    library.call(
        "dynamic_local_attention",
        x=x,
        **weights_of(layer),
        out=out,
        squeezed=len(layer.squeeze_weight),
        groups=len(layer.filter_weight) // layer.window_size**2,
        window_size=layer.window_size,
        **sizes_of(x),
    )
    return out


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    x = x.contiguous()
    out = empty(len(x), len(layer.weight), *x.shape[2:])
    _convolve(layer, x, out, add=False)
    return out


def add_convolution(layer: Conv3x3, x: Tensor, to: Tensor) -> None:
    if to.is_contiguous():
        _convolve(layer, x.contiguous(), to, add=True)
    else:
        to += convolution(layer, x)


def _convolve(layer: Conv3x3, x: Tensor, out: Tensor, add: bool) -> None:
    outputs = len(layer.weight)
    weights = {"bias": torch.zeros(outputs), **weights_of(layer)}
    library.call("convolution", x=x, **weights, out=out, outputs=outputs, add=add, **sizes_of(x))


BAND = 16  # rows in one partial sum of the products of q and k; it does not depend on the threads


@functools.lru_cache(maxsize=64)
def _pieces(size: int, window: int | None, grid: int) -> Tensor:
    """`dlgsanet.ops.windows.pieces` as a tensor [pieces, 4], which the library reads."""
    return torch.tensor(pieces(size, window, grid=grid), dtype=torch.int64)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    x, weights = x.contiguous(), weights_of(layer)
    batch, channels, height, width = x.shape
    heads = len(layer.temperature)
    fitting = constants.CACHE_FLOATS // (22 * channels)
    # With a column on both sides for the depth-wise convolution it has whole registers.
    tile_width = max(64, fitting // constants.COLUMN_STEP * constants.COLUMN_STEP) - 2
    bands, columns = _pieces(height, layer.window, BAND), _pieces(width, layer.window, tile_width)
    cut: dict[str, Any] = {
        "band_pieces": bands,
        "column_pieces": columns,
        "band_count": len(bands),
        "column_count": len(columns),
    }
    proj_out, _ = weights.pop("proj_out"), weights.pop("temperature")

    c = channels // heads
    sums = channels * c + 2 * channels
    windows = [int(axis[-1, 3]) + 1 for axis in (bands, columns)]
    v, piece_sums = empty_like(x), torch.empty(batch, len(bands), len(columns), sums)
    window_sums = torch.empty(batch, *windows, sums)
    library.call(
        "channel_attention_sums",
        x=x,
        **weights,
        **cut,
        v=v,
        piece_sums=piece_sums,
        window_sums=window_sums,
        head_count=heads,
        tile_width=tile_width,
        **sizes_of(x),
    )
    attention = _attention(layer, window_sums, c)
    # The result takes the place of v: every pixel of v is read once, before the result is written there.
    library.call(
        "channel_attention_apply",
        x=x, v=v, weights=attention, proj_out=proj_out, **cut, out=v, head_count=heads, **sizes_of(x),
    )  # fmt: skip
    return v


def _attention(layer: ChannelAttention, sums: Tensor, c: int) -> Tensor:
    """Weights [..., heads, c, c] from the sums over each window: products of q and k, then squares of q and of k."""
    heads = len(layer.temperature)
    products, squares = sums.split([heads * c * c, 2 * heads * c], -1)
    norms = squares.sqrt().clamp_min(NORMALIZE_EPS).unflatten(-1, (2, heads, c))
    norm_q, norm_k = norms.unbind(-3)
    products = products.unflatten(-1, (heads, c, c))
    similarities = products / (norm_q.unsqueeze(-1) * norm_k.unsqueeze(-2)) * layer.temperature
    return reference.select_similarities(similarities, layer.activation, layer.topk_ratio).contiguous()
