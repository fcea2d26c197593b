"""The arguments of the compiled functions: names, order, and the shape of every tensor.

A function here has the sizes of the C++ function of the same name as parameters, and returns the shapes of its tensors,
both in the order of the C++ declaration. A length of None is not checked.

Axes and sizes: batch, channels, height, width; half is half of the hidden channels of the feed-forward network,
squeezed and inputs are the channels that filters are formed from, groups are groups of channels that share a filter,
outputs are the channels of the result of a convolution, factor is that of the pixel shuffle after it. With add, its
result is added to the tensor `to`. kept are the images of which a function writes what training keeps: all or none.
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

from dlgsanet.ops.constants import COLUMN_STEP

Shapes = dict[str, tuple[int | None, ...]]


def _taps(window_size: int) -> int:
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be odd, got {window_size}")
    return window_size**2


def _share(channels: int, parts: int) -> int:
    if parts < 1 or channels % parts:
        raise ValueError(f"{channels} channels cannot be divided into {parts} groups or heads")
    return channels // parts


def _kept(batch: int, kept: int) -> int:
    if kept not in (0, batch):
        raise ValueError(f"kept must be 0 or {batch}, got {kept}")
    return kept


def kept_rows(batch: int, channels: int, height: int, width: int, kept: int) -> tuple[int, ...]:
    """The layout of `KeptRows`."""
    return _kept(batch, kept), height, channels, math.ceil(width / COLUMN_STEP) * COLUMN_STEP


def _gradients(tensors: Shapes) -> Shapes:
    return {f"grad_{name}": shape for name, shape in tensors.items()}


def _normed(channels: int) -> Shapes:
    return {"norm_weight": (channels,), "norm_bias": (channels,)}


def _gated_feed_forward_weights(channels: int, half: int) -> Shapes:
    return {
        **_normed(channels),
        "proj_in": (2 * half, channels, 1, 1),
        "depthwise": (2 * half, 1, 3, 3),
        "proj_out": (channels, half, 1, 1),
    }


def _gated_feed_forward(batch: int, channels: int, half: int, height: int, width: int, kept: int) -> Shapes:
    image, projected = (batch, channels, height, width), kept_rows(batch, 2 * half, height, width, kept)
    return {"x": image, **_gated_feed_forward_weights(channels, half), "projected": projected, "out": image}


def _gated_feed_forward_backward(batch: int, channels: int, half: int, height: int, width: int, kept: int) -> Shapes:
    image, projected = (batch, channels, height, width), kept_rows(batch, 2 * half, height, width, kept)
    tensors = {"x": image, **_gated_feed_forward_weights(channels, half)}
    return {"grad": image, **tensors, "projected": projected, **_gradients(tensors)}


def _local_attention_weights(channels: int, squeezed: int, groups: int, window_size: int) -> Shapes:
    _share(channels, groups)
    outputs = groups * _taps(window_size)
    return {
        **_normed(channels),
        "proj_in": (channels, channels, 1, 1),
        "squeeze_weight": (squeezed, channels, 1, 1),
        "squeeze_bias": (squeezed,),
        "spatial_weight": (squeezed, 1, window_size, window_size),
        "spatial_bias": (squeezed,),
        "filter_weight": (outputs, squeezed, 1, 1),
        "filter_bias": (outputs,),
        "proj_out": (channels, channels, 1, 1),
    }


def _dynamic_local_attention(
    batch: int, channels: int, squeezed: int, groups: int, window_size: int, height: int, width: int, kept: int
) -> Shapes:
    return {
        "x": (batch, channels, height, width),
        **_local_attention_weights(channels, squeezed, groups, window_size),
        "y": (_kept(batch, kept), channels, height, width),
        "z": (kept, squeezed, height, width),
        "filtered": (kept, channels, height, width),
        "out": (batch, channels, height, width),
    }


def _dynamic_local_attention_backward(
    batch: int, channels: int, squeezed: int, groups: int, window_size: int, height: int, width: int
) -> Shapes:
    image, features = (batch, channels, height, width), (batch, squeezed, height, width)
    tensors = {"x": image, **_local_attention_weights(channels, squeezed, groups, window_size)}
    return {
        "grad": image,
        **tensors,
        "y": image,
        "z": features,
        "filtered": image,
        "grad_y": image,
        "grad_z": features,
        **_gradients(tensors),
    }


def _dynamic_convolution(
    batch: int, channels: int, inputs: int, groups: int, window_size: int, height: int, width: int
) -> Shapes:
    _share(channels, groups)
    outputs = groups * _taps(window_size)
    return {
        "x": (batch, channels, height, width),
        "z": (batch, inputs, height, width),
        "weight": (outputs, inputs),
        "bias": (outputs,),
    }


def _fused_dynamic_depthwise_conv(
    batch: int, channels: int, inputs: int, groups: int, window_size: int, height: int, width: int
) -> Shapes:
    convolution = _dynamic_convolution(batch, channels, inputs, groups, window_size, height, width)
    return {**convolution, "out": (batch, channels, height, width)}


def _fused_dynamic_depthwise_conv_backward(
    batch: int, channels: int, inputs: int, groups: int, window_size: int, height: int, width: int
) -> Shapes:
    tensors = _dynamic_convolution(batch, channels, inputs, groups, window_size, height, width)
    return {"grad": (batch, channels, height, width), **tensors, **_gradients(tensors)}


def _projected_weights(channels: int) -> Shapes:
    return {
        **_normed(channels),
        "qkv_weight": (3 * channels, channels, 1, 1),
        "depthwise": (3 * channels, 1, 3, 3),
    }


def _channel_attention_sums(
    batch: int,
    channels: int,
    head_count: int,
    height: int,
    width: int,
    band_count: int,
    column_count: int,
    tile_width: int,
    kept: int,
) -> Shapes:
    share = _share(channels, head_count)
    return {
        "x": (batch, channels, height, width),
        **_projected_weights(channels),
        "band_pieces": (band_count, 4),
        "column_pieces": (column_count, 4),
        "v": (batch, channels, height, width),
        "piece_sums": (batch, band_count, column_count, channels * share + 2 * channels),
        "cosines": (batch, None, None, head_count, share, share),
        "norms": (batch, None, None, 2, head_count, share),
        "projected": kept_rows(batch, 3 * channels, height, width, kept),
    }


def _channel_attention_apply(
    batch: int, channels: int, head_count: int, height: int, width: int, band_count: int, column_count: int
) -> Shapes:
    image, share = (batch, channels, height, width), _share(channels, head_count)
    return {
        "x": image,
        "v": image,
        "weights": (batch, None, None, head_count, share, share),
        "proj_out": (channels, channels, 1, 1),
        "band_pieces": (band_count, 4),
        "column_pieces": (column_count, 4),
        "out": image,
    }


def _channel_attention_mixing_backward(batch: int, channels: int, heads: int, height: int, width: int) -> Shapes:
    share = _share(channels, heads)
    tensors: Shapes = {"weights": (batch, 1, 1, heads, share, share), "proj_out": (channels, channels, 1, 1)}
    return {
        "grad": (batch, channels, height, width),
        "projected": kept_rows(batch, 3 * channels, height, width, batch),
        "depthwise": (3 * channels, 1, 3, 3),
        **tensors,
        **_gradients(tensors),
    }


def _channel_attention_backward(batch: int, channels: int, heads: int, height: int, width: int) -> Shapes:
    image, share = (batch, channels, height, width), _share(channels, heads)
    matrices = (batch, 1, 1, heads, share, share)
    tensors = {"x": image, **_projected_weights(channels)}
    return {
        "grad": image,
        **tensors,
        "proj_out": (channels, channels, 1, 1),
        "projected": kept_rows(batch, 3 * channels, height, width, batch),
        "cosines": matrices,
        "norms": (batch, 1, 1, 2, heads, share),
        "weights": matrices,
        "grad_cosines": matrices,
        **_gradients(tensors),
    }


def _convolution(batch: int, channels: int, outputs: int, factor: int, height: int, width: int, add: int) -> Shapes:
    if factor < 1 or outputs % factor**2:
        raise ValueError(f"a pixel shuffle of factor {factor} does not fit {outputs} channels")
    shuffled = (batch, outputs // factor**2, factor * height, factor * width)
    return {
        "x": (batch, channels, height, width),
        "weight": (outputs, channels, 3, 3),
        "bias": (outputs,),
        "to": shuffled,
        "out": shuffled,
    }


def _convolution_backward(batch: int, channels: int, outputs: int, height: int, width: int) -> Shapes:
    return {
        "grad": (batch, outputs, height, width),
        "x": (batch, channels, height, width),
        **_gradients({"weight": (outputs, channels, 3, 3), "bias": (outputs,)}),
    }


class Signature(NamedTuple):
    """The arguments of a compiled function: its tensors, then its sizes.

    Attributes:
        shapes: the shapes of the tensors by name, from the sizes by name. It raises ValueError for sizes that do not
            fit each other.
        sizes: the names of the sizes.
    """

    shapes: Callable[..., Shapes]
    sizes: tuple[str, ...]


SIGNATURES = {
    function.__name__.removeprefix("_"): Signature(function, tuple(inspect.signature(function).parameters))
    for function in (
        _gated_feed_forward,
        _gated_feed_forward_backward,
        _dynamic_local_attention,
        _dynamic_local_attention_backward,
        _fused_dynamic_depthwise_conv,
        _fused_dynamic_depthwise_conv_backward,
        _channel_attention_sums,
        _channel_attention_apply,
        _convolution,
        _convolution_backward,
        _channel_attention_mixing_backward,
        _channel_attention_backward,
    )
}
