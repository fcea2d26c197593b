"""The arguments of the compiled functions: names, order, and the shape of every tensor.

A function here has the sizes of the C++ function of the same name as parameters, and returns the shapes of its tensors,
both in the order of the C++ declaration. A length of None is not checked.

Axes and sizes: batch, channels, height, width; half is half of the hidden channels of the feed-forward network,
squeezed and inputs are the channels that filters are formed from, groups are groups of channels that share a filter,
outputs are the channels of the result of a convolution, factor is that of the pixel shuffle after it. With add, a
function adds to its result. kept are the images of which a function writes what training keeps: all or none.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

from dlgsanet.ops import constants

Shapes = dict[str, tuple[int | None, ...]]

FILTER_FACTORS = 3 * (constants.CONVOLVED_ROWS + 2)  # numbers made from a 3x3 filter, in minimal_filtering.h


def round_up(count: int) -> int:
    """Columns of a matrix in which the libraries add up `count` columns."""
    return -(-count // constants.COLUMN_STEP) * constants.COLUMN_STEP


def strips(batch: int, height: int) -> int:
    """The number of partial sums over images that the libraries form (`Strips` in partial_sums.h)."""
    return batch * -(-height // constants.STRIP_ROWS)


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


def _normed(batch: int, channels: int, height: int, width: int) -> Shapes:
    return {"x": (batch, channels, height, width), "norm_weight": (channels,), "norm_bias": (channels,)}


def _features(channels: int, squeezed: int) -> Shapes:
    return {
        "proj_in": (channels, channels, 1, 1),
        "squeeze_weight": (squeezed, channels, 1, 1),
        "squeeze_bias": (squeezed,),
    }


def _spatial(squeezed: int, window_size: int) -> Shapes:
    _taps(window_size)
    return {"spatial_weight": (squeezed, 1, window_size, window_size), "spatial_bias": (squeezed,)}


def _gated_feed_forward(batch: int, channels: int, half: int, height: int, width: int) -> Shapes:
    return {
        **_normed(batch, channels, height, width),
        "proj_in": (2 * half, channels, 1, 1),
        "depthwise": (2 * half, 1, 3, 3),
        "proj_out": (channels, half, 1, 1),
        "out": (batch, channels, height, width),
    }


def _depthwise_backward(batch: int, channels: int, hidden: int, height: int, width: int) -> Shapes:
    return {
        "grad": (batch, channels, height, width),
        **_normed(batch, channels, height, width),
        "proj": (hidden, channels, 1, 1),
        "depthwise": (hidden, 1, 3, 3),
        "proj_transposed": (channels, hidden),
        "depthwise_flipped": (hidden, 9),
    }


def _depthwise_gradients(batch: int, channels: int, hidden: int, height: int, width: int, more_rows: int) -> Shapes:
    floats = (more_rows + hidden) * round_up(channels) + 9 * hidden + 2 * channels
    return {"grad_x": (batch, channels, height, width), "parts": (strips(batch, height), floats)}


def _gated_feed_forward_backward(batch: int, channels: int, half: int, height: int, width: int) -> Shapes:
    return {
        **_depthwise_backward(batch, channels, 2 * half, height, width),
        "proj_out_transposed": (half, channels),
        **_depthwise_gradients(batch, channels, 2 * half, height, width, half),
    }


def _dynamic_local_attention(
    batch: int, channels: int, squeezed: int, groups: int, window_size: int, height: int, width: int, kept: int
) -> Shapes:
    _share(channels, groups)
    outputs = groups * _taps(window_size)
    return {
        **_normed(batch, channels, height, width),
        **_features(channels, squeezed),
        **_spatial(squeezed, window_size),
        "filter_weight": (outputs, squeezed, 1, 1),
        "filter_bias": (outputs,),
        "proj_out": (channels, channels, 1, 1),
        "y": (_kept(batch, kept), channels, height, width),
        "z": (kept, squeezed, height, width),
        "filtered": (kept, channels, height, width),
        "out": (batch, channels, height, width),
    }


def _local_features_backward(
    batch: int, channels: int, squeezed: int, window_size: int, height: int, width: int
) -> Shapes:
    image, taps = (batch, channels, height, width), _taps(window_size)
    floats = (channels + squeezed) * round_up(channels) + squeezed * (taps + 2) + 2 * channels
    return {
        "grad": image,
        "grad_y": image,
        "grad_z": (batch, squeezed, height, width),
        **_normed(batch, channels, height, width),
        **_features(channels, squeezed),
        "proj_in_transposed": (channels, channels),
        "squeeze_transposed": (channels, squeezed),
        "spatial_flipped": (squeezed, taps),
        "y": image,
        "grad_x": image,
        "parts": (strips(batch, height), floats),
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
    image, taps = (batch, channels, height, width), _taps(window_size)
    return {
        "grad": image,
        **_dynamic_convolution(batch, channels, inputs, groups, window_size, height, width),
        "weight_transposed": (groups, inputs, taps),
        "grad_x": image,
        "grad_z": (batch, inputs, height, width),
        "parts": (strips(batch, height), groups * taps, round_up(inputs + 1)),
    }


def _projected_dynamic_conv_backward(
    batch: int, channels: int, inputs: int, groups: int, window_size: int, height: int, width: int
) -> Shapes:
    image, features, taps = (batch, channels, height, width), (batch, inputs, height, width), _taps(window_size)
    _share(channels, groups)
    floats = channels * round_up(channels) + groups * taps * round_up(inputs + 1)
    return {
        "grad": image,
        "y": image,
        "z": features,
        "filtered": image,
        "weight": (groups * taps, inputs),
        "bias": (groups * taps,),
        "weight_transposed": (groups, inputs, taps),
        "proj_out_transposed": (channels, channels),
        "grad_y": image,
        "grad_z": features,
        "parts": (strips(batch, height), floats),
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
    sums = channels * _share(channels, head_count) + 2 * channels
    return {
        **_normed(batch, channels, height, width),
        "qkv_weight": (3 * channels, channels, 1, 1),
        "depthwise": (3 * channels, 1, 3, 3),
        "band_pieces": (band_count, 4),
        "column_pieces": (column_count, 4),
        "v": (batch, channels, height, width),
        "piece_sums": (batch, band_count, column_count, sums),
        "window_sums": (batch, None, None, sums),
        "projected": (_kept(batch, kept), 3 * channels, height, width),
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


def _convolution(batch: int, channels: int, outputs: int, factor: int, height: int, width: int, add: int) -> Shapes:
    if factor < 1 or outputs % factor**2:
        raise ValueError(f"a pixel shuffle of factor {factor} does not fit {outputs} channels")
    return {
        "x": (batch, channels, height, width),
        "weight": (outputs, channels, 3, 3),
        "bias": (outputs,),
        "out": (batch, outputs // factor**2, factor * height, factor * width),
    }


def _convolution_backward(batch: int, channels: int, outputs: int, height: int, width: int) -> Shapes:
    return {
        "grad": (batch, outputs, height, width),
        "x": (batch, channels, height, width),
        "parts": (strips(batch, height), FILTER_FACTORS * outputs * round_up(channels) + outputs),
    }


def _channel_attention_mixing_backward(batch: int, channels: int, height: int, width: int) -> Shapes:
    return {
        "grad": (batch, channels, height, width),
        "projected": (batch, 3 * channels, height, width),
        "depthwise": (3 * channels, 1, 3, 3),
        "parts": (strips(batch, height), channels, round_up(channels)),
    }


def _channel_attention_backward(batch: int, channels: int, heads: int, height: int, width: int) -> Shapes:
    share = _share(channels, heads)
    return {
        **_depthwise_backward(batch, channels, 3 * channels, height, width),
        "projected": (batch, 3 * channels, height, width),
        "of_similarities": (batch, heads, 4, share, share),
        "mixing_transposed": (batch, channels, channels),
        **_depthwise_gradients(batch, channels, 3 * channels, height, width, 0),
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
        _local_features_backward,
        _fused_dynamic_depthwise_conv,
        _fused_dynamic_depthwise_conv_backward,
        _projected_dynamic_conv_backward,
        _channel_attention_sums,
        _channel_attention_apply,
        _convolution,
        _convolution_backward,
        _channel_attention_mixing_backward,
        _channel_attention_backward,
    )
}
