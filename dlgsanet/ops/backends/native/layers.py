"""Whole layers for inference."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlgsanet.ops import constants
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.native import library
from dlgsanet.ops.backends.native.signatures import kept_rows
from dlgsanet.ops.kept_memory import empty, empty_like, run
from dlgsanet.ops.records import ChannelAttention, Conv3x3, GatedFeedForward, Layer, LocalAttention
from dlgsanet.ops.windows import pieces


def sizes_of(x: Tensor) -> dict[str, int]:
    """The sizes of an image [B, C, H, W] by the names of `signatures.SIGNATURES`."""
    return dict(zip(("batch", "channels", "height", "width"), x.shape, strict=True))


def weights_of(layer: Layer) -> dict[str, Tensor]:
    """A layer's tensors by name, contiguous."""
    return {name: value.contiguous() for name, value in layer._asdict().items() if isinstance(value, Tensor)}


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    return keeping_gated_feed_forward(layer, x, 0)[0]


def keeping_gated_feed_forward(layer: GatedFeedForward, x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The layer, and proj_in(norm(x)) [kept, H, 2 * half, W rounded up] of the first `kept` images, all or none."""
    x = x.contiguous()
    out, half = empty_like(x), layer.proj_out.shape[1]
    projected = _rows_to_keep(x, kept, 2 * half)
    library.call(
        "gated_feed_forward",
        x=x, **weights_of(layer), projected=projected, out=out, half=half, kept=kept, **sizes_of(x),
    )  # fmt: skip
    return out, projected


def _rows_to_keep(x: Tensor, kept: int, channels: int) -> Tensor:
    """Memory for the rows of `channels` channels that training keeps."""
    batch, _, height, width = x.shape
    return x.new_empty(kept_rows(batch, channels, height, width, kept))


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return keeping_dynamic_local_attention(layer, x, 0)[0]


def keeping_dynamic_local_attention(
    layer: LocalAttention, x: Tensor, kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layer, and y, z and the result of the dynamic convolution for the first `kept` images, all or none."""
    x = x.contiguous()
    out = empty_like(x)
    _, channels, height, width = x.shape
    y, filtered = (x.new_empty(kept, channels, height, width) for _ in range(2))
    z = x.new_empty(kept, len(layer.squeeze_weight), height, width)
    library.call(
        "dynamic_local_attention",
        x=x,
        **weights_of(layer),
        y=y,
        z=z,
        filtered=filtered,
        out=out,
        squeezed=len(layer.squeeze_weight),
        groups=len(layer.filter_weight) // layer.window_size**2,
        window_size=layer.window_size,
        kept=kept,
        **sizes_of(x),
    )
    return out, y, z, filtered


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    if layer.mean is not None:
        x = x - layer.mean
    *_, height, width = x.shape
    factor, to = layer.factor, layer.to
    out = empty(len(x), len(layer.weight) // factor**2, factor * height, factor * width)
    if to is not None and to.shape == (1, out.shape[1], 1, 1):
        layer = layer._replace(bias=_bias(layer) + to.flatten().repeat_interleave(factor**2), to=None)
    _convolve(layer, x, out)
    return out


def add_convolution(layer: Conv3x3, x: Tensor, to: Tensor) -> None:
    if to.is_contiguous() and layer.mean is None:
        _convolve(layer._replace(to=to), x, to)
    else:
        to += convolution(layer, x)


def _bias(layer: Conv3x3) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _convolve(layer: Conv3x3, x: Tensor, out: Tensor) -> None:
    """Without the layer's mean."""
    x, weight, bias = (t.contiguous() for t in (x, layer.weight, _bias(layer)))
    add = layer.to is not None
    to = out if layer.to is None else layer.to.contiguous()
    sizes = sizes_of(x) | {"outputs": len(weight), "factor": layer.factor}
    library.call("convolution", x=x, weight=weight, bias=bias, to=to, out=out, add=add, **sizes)


BAND = 16  # rows in one partial sum of the products of q and k; it does not depend on the threads


class _Pieces(NamedTuple):
    """`dlgsanet.ops.windows.pieces` as a tensor [pieces, 4], which the library reads, and the number of windows."""

    tensor: Tensor
    windows: int


@functools.lru_cache(maxsize=64)
def _pieces(size: int, window: int | None, grid: int) -> _Pieces:
    found = pieces(size, window, grid=grid)
    return _Pieces(torch.tensor(found, dtype=torch.int64, device="cpu"), found[-1].last_window + 1)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    x = x.contiguous()
    v, cosines, _, _ = attention_sums(layer, x, 0)
    # In the place of the cosines, because these exist only after the call.
    run(lambda: cosines.copy_(attention_weights(layer, cosines)), [cosines])
    return attend(layer, x, v, cosines)


def attention_sums(layer: ChannelAttention, x: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the weights of the attention are computed from.

    Returns:
        v [B, C, H, W]; the cosines between the channels of q and k in each window [B, windows down, windows across,
        heads, c, c]; the norms of these channels [B, windows down, windows across, 2, heads, c]; for the first `kept`
        images, all or none, proj(norm(x)) [kept, H, 3 * C, W rounded up].
    """
    weights, (bands, columns) = weights_of(layer), _cut(layer, x)
    normed = {name: weights[name] for name in ("norm_weight", "norm_bias", "qkv_weight", "depthwise")}
    batch, channels, *_ = x.shape
    heads = len(layer.temperature)
    c = channels // heads
    windows = bands.windows, columns.windows
    piece_sums = empty(batch, len(bands.tensor), len(columns.tensor), channels * c + 2 * channels)
    cosines, norms = empty(batch, *windows, heads, c, c), empty(batch, *windows, 2, heads, c)
    v, projected = empty_like(x), _rows_to_keep(x, kept, 3 * channels)
    library.call(
        "channel_attention_sums",
        x=x,
        **normed,
        **_pieces_of(bands, columns),
        v=v,
        piece_sums=piece_sums,
        cosines=cosines,
        norms=norms,
        projected=projected,
        head_count=heads,
        tile_width=_tile_width(channels),
        kept=kept,
        **sizes_of(x),
    )
    return v, cosines, norms, projected


def attention_weights(layer: ChannelAttention, cosines: Tensor) -> Tensor:
    """Weights from cosines, both [..., heads, c, c]."""
    similarities = cosines * layer.temperature
    return reference.select_similarities(similarities, layer.activation, layer.topk_ratio).contiguous()


def attend(layer: ChannelAttention, x: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """x + proj_out @ weights @ v; the result takes the place of v."""
    # Every pixel of v is read once, before the result is written there.
    library.call(
        "channel_attention_apply",
        x=x, v=v, weights=weights, proj_out=layer.proj_out.contiguous(), **_pieces_of(*_cut(layer, x)), out=v,
        head_count=len(layer.temperature), **sizes_of(x),
    )  # fmt: skip
    return v


def _tile_width(channels: int) -> int:
    fitting = constants.CACHE_FLOATS // (22 * channels)
    # With a column on both sides for the depth-wise convolution it has whole registers.
    return max(64, fitting // constants.COLUMN_STEP * constants.COLUMN_STEP) - 2


def _cut(layer: ChannelAttention, x: Tensor) -> tuple[_Pieces, _Pieces]:
    """The pieces of the rows and columns of x."""
    _, channels, height, width = x.shape
    return _pieces(height, layer.window, BAND), _pieces(width, layer.window, _tile_width(channels))


def _pieces_of(bands: _Pieces, columns: _Pieces) -> dict[str, Any]:
    """The arguments of the library."""
    return {
        "band_pieces": bands.tensor,
        "column_pieces": columns.tensor,
        "band_count": len(bands.tensor),
        "column_count": len(columns.tensor),
    }
