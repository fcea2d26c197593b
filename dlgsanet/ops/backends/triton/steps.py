"""The steps of `planar` by Triton kernels, without gradients.

A hidden tensor is projected without its bias; the kernel that reads it adds the bias. So no operator is needed for the
bias.

Axes: B batch, C channels, H height, W width, O channels of a hidden tensor.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dlgsanet.ops import autocast, tf32
from dlgsanet.ops.backends import choice
from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.backends.torch.frozen import KEPT, derived
from dlgsanet.ops.backends.torch.strip_rows import rows_of_strip
from dlgsanet.ops.backends.triton import kernels
from dlgsanet.ops.backends.triton.tiles import TILE_COLUMNS, Strip, tiles_of
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import ChannelAttention, Conv3x3, LocalAttention

TILE = 512  # pixels that a program filters at a time
WIDEST_HEAD = 64  # channels of a head; a program of the kernels for attention has all of them
NORMALISED, WARPS = 4096, 8  # values that a program normalises, and its warps
OUTPUTS = 32  # channels that a program projects to at a time; more, or fewer warps, would spill registers
GATED, PROJECTED = 128, 16384  # pixels of a program of `gate_project`, and the most values of its result
FEWEST_TERMS = 16  # of a product: Triton compiles no smaller ones for NVIDIA GPUs
WINDOWS, FEATURES = (3, 5, 7), 31  # of local attention in one kernel: with more, filters do not fit into registers
GROUPS, COLUMNS = 4, 32  # groups, each in a warp, and columns of a tile that a program computes at once
SUMMED, FILTERED = 32, 2048  # rows of a program of `channel_sums`, and values that it filters at a time
ATTENDED, RESULTS = 128, 8192  # pixels of a program of `attend`, and the most values of its result
CONVOLVED, CONVOLVED_TO = 64, 64  # pixels of a program of `convolve`, and the most channels that it computes


def normalise(x: Tensor) -> Tensor:
    """Each pixel of x [B, C, H, W] less its mean over C, over its standard deviation; in autocast's dtype."""
    channels, height, width = x.shape[1:]
    x = _with_contiguous_planes(x)
    out = torch.empty(x.shape, dtype=autocast.dtype_of(x), device=x.device)
    grid, sizes = _columns(x)
    with _on(x):
        kernels.normalise[grid](x, out, x.stride(0), x.stride(1), channels, height * width, EPS=LAYER_NORM_EPS, **sizes)
    return out


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``weight @ normalise(x) + bias``: in one kernel, if that is faster on this card."""
    if x.dtype == torch.float64:
        return _normalise_then_project(x, weight, bias)
    key = x.dtype, autocast.dtype_of(x), *weight.shape[:2], bias is None, _precision(x)
    which = _choice("normalisation and projection in one kernel", x.device, *key)
    one_kernel = functools.partial(_normalise_project, x, weight, bias)
    return _faster(which, x, functools.partial(_normalise_then_project, x, weight, bias), one_kernel)


def local_attention(layer: LocalAttention, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What follows the first projection is one kernel, if that is faster on this card."""
    window, channels, features = layer.window_size, x.shape[1], len(layer.squeeze_bias)
    if x.dtype == torch.float64 or window not in WINDOWS or features > FEATURES:
        return _project_then_attend(layer, x, weight, bias)
    precisions = _precision(x), _precision_of_filters(x)
    key = x.dtype, autocast.dtype_of(x), channels, len(layer.filter_bias), features, window, *precisions
    which = _choice("local attention in one kernel", x.device, *key)
    one_kernel = functools.partial(_attend_locally, layer, x, weight, bias)
    return _faster(which, x, functools.partial(_project_then_attend, layer, x, weight, bias), one_kernel)


def features(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor) -> Tensor:
    hidden = project(x, weight, None)
    out = torch.empty_like(hidden)
    _filter(kernels.depthwise, hidden, bias, depthwise, out)
    return out


def feed_forward(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor, proj_out: Tensor) -> Tensor:
    """What follows the first projection is one kernel, if that is faster on this card."""
    hidden = project(x, weight, None)
    if x.dtype == torch.float64:
        return _gate_then_project(x, hidden, bias, depthwise, proj_out)
    key = x.dtype, hidden.dtype, *proj_out.shape[:2], _precision(x)
    which = _choice("gate and projection in one kernel", x.device, *key)
    one_kernel = functools.partial(_gate_project, x, hidden, bias, depthwise, proj_out)
    return _faster(which, x, functools.partial(_gate_then_project, x, hidden, bias, depthwise, proj_out), one_kernel)


def windows(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor, top: int, plan: planar.Plan) -> Tensor:
    x, bias, depthwise = project(x, weight, None), bias.contiguous(), depthwise.contiguous()
    channels, height, width = x.shape[1:]
    pixels = len(plan.pixels) // plan.windows
    out = x.new_empty(plan.windows, channels, pixels)
    tiles = triton.cdiv(pixels, TILE)
    sizes = {"ROWS": TILE // 64, "COLUMNS": 64, "ACC": _triton_dtype(accumulation_dtype(x.dtype))}
    with _on(x):
        kernels.depthwise_in_windows[plan.windows * channels * tiles,](
            x, bias, depthwise, plan.pixels, out, channels, height, width, top, pixels, tiles, **sizes
        )
    return out


def attention(layer: ChannelAttention, qk: Tensor) -> Tensor:
    if layer.activation != "relu" or qk.shape[1] // 2 // len(layer.temperature) > WIDEST_HEAD:
        return planar.STEPS.attention(layer, qk)
    with autocast.off(qk.device.type):
        gram = torch.bmm(qk, qk.transpose(1, 2))
    out = gram.new_empty(len(gram), gram.shape[1] // 2, gram.shape[2] // 2)
    grid, sizes = _heads(gram, layer.temperature)
    with _on(gram):
        kernels.attention[grid](gram, layer.temperature, out, **sizes)
    return out


def attend_in_windows(layer: ChannelAttention, x: Tensor) -> Tensor:
    """By sums over tiles, if that is faster on this card: no windows are written."""
    channels, heads = x.shape[1], len(layer.temperature)
    suited = layer.activation == "relu" and channels // heads <= WIDEST_HEAD and x.dtype != torch.float64
    if not suited:
        return _attend_by_windows(layer, x)
    key = x.dtype, autocast.dtype_of(x), channels, heads, layer.window, _precision(x)
    which = _choice("attention in windows by tiles", x.device, *key)
    by_tiles = functools.partial(_attend_by_tiles, layer, x)
    return _faster(which, x, functools.partial(_attend_by_windows, layer, x), by_tiles)


def convolution(layer: Conv3x3, x: Tensor) -> Tensor:
    """With what comes before and after it in one kernel; without gradients."""
    batch, _, height, width = x.shape
    shape = batch, len(layer.weight) // layer.factor**2, layer.factor * height, layer.factor * width
    return _convolve(layer, x, torch.empty(shape, dtype=autocast.dtype_of(x), device=x.device))


def add_convolution(layer: Conv3x3, x: Tensor, to: Tensor) -> None:
    if to.is_contiguous():
        _convolve(layer._replace(to=to), x, to)
    else:
        to += convolution(layer, x)


def takes_convolution(layer: Conv3x3, x: Tensor) -> bool:
    """Whether there is a kernel for it."""
    shuffled = layer.factor > 1 and layer.to is not None and layer.to.shape[2:] != (1, 1)
    return x.dtype != torch.float64 and not shuffled


def convolution_timed(layer: Conv3x3, x: Tensor) -> tuple[object, ...]:
    """What its time depends on, apart from the pixels. Weights that are not frozen are packed in every call."""
    around = layer.mean is None, layer.factor, None if layer.to is None else layer.to.shape[2:] == x.shape[2:]
    dtypes = x.dtype, autocast.dtype_of(x), layer.weight.dtype
    return *dtypes, *layer.weight.shape[:2], *around, _precision_of_convolution(x), hasattr(layer.weight, KEPT)


STEPS = planar.Steps(local_attention, features, feed_forward, windows, attention, attend_in_windows)


def _with_contiguous_planes(x: Tensor) -> Tensor:
    """x [B, C, H, W], or a contiguous copy: kernels take the strides of images and channels only."""
    return x if x[0, 0].is_contiguous() else x.contiguous()


@functools.cache
def _choice(name: str, device: torch.device, *key: object) -> choice.Choice:
    sources = tuple(sorted(Path(__file__).parent.glob("*.py")))
    return choice.Choice(name, device, sources, (name, *key, triton.__version__))


def _faster(which: choice.Choice, x: Tensor, steps: Callable[[], Tensor], one_kernel: Callable[[], Tensor]) -> Tensor:
    """The result of the faster way for images like x [B, C, H, W]."""
    pixels = len(x) * x.shape[2:].numel()
    return steps() if choice.is_faster(which, pixels, steps, one_kernel) else one_kernel()


def _precision(x: Tensor) -> str:
    """The precision of products in float32."""
    return "tf32" if tf32.allowed_in_matrix_products() and _has_tf32(x.device) else "ieee"


def _precision_of_filters(x: Tensor) -> str:
    """How products that form filters are computed, in float32 or TF32, which has as many bits as float16."""
    exact_enough = autocast.dtype_of(x).itemsize == 2 or tf32.allowed_in_convolutions()
    return "tf32" if exact_enough and _has_tf32(x.device) else "ieee"


def _precision_of_convolution(x: Tensor) -> str:
    """The precision of a convolution's products in float32: three in TF32, of halves of the factors, are as exact, and
    faster."""
    if not _has_tf32(x.device):
        return "ieee"
    return "tf32" if tf32.allowed_in_convolutions() else "tf32x3"


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.version.hip


def _normalise_project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty(len(x), len(weight), *x.shape[2:], dtype=autocast.dtype_of(x), device=x.device)
    return _normalise_project_into(out, 0, x, weight, bias)


def _normalise_project_into(out: Tensor, border: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The image begins after a border of `out`, which has room for it. Outside of the image there are zeros."""
    channels, height, width = x.shape[1:]
    x = _with_contiguous_planes(x)
    weight = weight.contiguous()
    _, sizes = _columns(x, FEWEST_TERMS)
    pixels = out.shape[2:].numel()
    sizes |= {
        "OUTPUTS": OUTPUTS,
        "PARTS": triton.cdiv(len(weight), OUTPUTS),
        "PRECISION": _precision(x),
        "HAS_BIAS": bias is not None,
        "FACTOR": _factor(x, out.dtype),
        "BORDER": border,
    }
    with _on(x):
        kernels.normalise_project[len(x) * triton.cdiv(pixels, sizes["PIXELS"]),](
            x, weight, weight if bias is None else bias.contiguous(), out, x.stride(0), x.stride(1), channels,
            len(weight), pixels, height, width, out.shape[3], EPS=LAYER_NORM_EPS, **sizes
        )  # fmt: skip
    return out


def _attend_locally(layer: LocalAttention, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`planar.local_attention`."""
    batch, channels, height, width = x.shape
    window, features = layer.window_size, len(layer.squeeze_bias)
    groups = len(layer.filter_bias) // window**2
    at_once = min(GROUPS, triton.next_power_of_2(groups))
    x = _with_contiguous_planes(x)
    down, across = triton.cdiv(height, 2), triton.cdiv(width, COLUMNS)
    hidden: dict[str, Any] = {"dtype": autocast.dtype_of(x), "device": x.device}
    y = torch.empty(batch, len(weight), 2 * down + window - 1, COLUMNS * across + window - 1, **hidden)
    _normalise_project_into(y, window // 2, x, weight, bias)
    filtered = torch.empty(batch * down * across, channels, 2 * COLUMNS, **hidden)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes: dict[str, Any] = {
        "K": window,
        "FEATURES": features,
        "SHARE": channels // groups,
        "TERMS": block_size(features + 1),
        "GROUPS": at_once,
        "PASSES": triton.cdiv(groups, at_once),
        "TAPS": block_size(window**2 + window),
        "PIXELS": COLUMNS,
        "PART": FEWEST_TERMS,
        "PARTS": triton.cdiv(channels, FEWEST_TERMS),
        "FORMED": _precision_of_filters(x),
        "PRECISION": _precision(x),
        "FACTOR": _factor(x, y.dtype),
        "ACC": tl.float32,
    }
    filters = derived(lambda: _padded_filters(layer, **sizes), layer.filter_weight, layer.filter_bias)
    with _on(x):
        kernels.attend_locally[len(filtered),](
            y, layer.spatial_weight.contiguous(), layer.spatial_bias.contiguous(), filters, layer.proj_out.contiguous(),
            x, filtered, out, x.stride(0), x.stride(1), channels, groups, height, width, down * across,
            num_warps=at_once, **sizes
        )  # fmt: skip
    return out


def _project_then_attend(layer: LocalAttention, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return planar.local_attention(layer, x, weight, bias, project)


def _padded_filters(
    layer: LocalAttention, K: int, FEATURES: int, TERMS: int, GROUPS: int, TAPS: int, **_: Any
) -> Tensor:
    """Weights and biases as the kernel takes them."""
    weight = torch.cat([layer.filter_weight.flatten(1), layer.filter_bias[:, None]], 1).unflatten(0, (-1, K * K))
    return F.pad(weight, (0, TERMS - FEATURES - 1, K, TAPS - K * K, 0, -len(weight) % GROUPS))


def _convolve(layer: Conv3x3, x: Tensor, out: Tensor) -> Tensor:
    """out: of the result's shape; it may be `layer.to`."""
    (outputs, channels), to = layer.weight.shape[:2], layer.to
    x = _with_contiguous_planes(x)
    to = None if to is None else _with_contiguous_planes(to)
    most = min(CONVOLVED_TO, block_size(outputs))
    tiles, sizes = _tiles(x, CONVOLVED, 32)
    sizes |= {
        "OUTPUTS": most,
        "WAYS": triton.cdiv(outputs, most),
        "TERMS": FEWEST_TERMS,
        "PARTS": triton.cdiv(channels, FEWEST_TERMS),
        "WHOLE": channels % FEWEST_TERMS == 0,
        "HAS_BIAS": layer.bias is not None,
        "HAS_MEAN": layer.mean is not None,
        "TO": 0 if to is None else 2 if to.shape == out.shape else 1,
        "SHUFFLE": layer.factor,
        "PRECISION": _precision_of_convolution(x),
        "FACTOR": _factor(x, autocast.dtype_of(x)),
    }
    dtype = autocast.dtype_of(x)
    weight = derived(lambda: _packed(layer.weight.to(dtype), most), layer.weight, key=dtype)
    given = [weight if t is None else t.contiguous() for t in (layer.bias, layer.mean)]
    strides = (0, 1) if to is None else to.expand(len(x), -1, -1, -1).stride()[:2]
    with _on(x):
        kernels.convolve[len(x) * tiles * sizes["WAYS"],](
            x, weight, *given, weight if to is None else to, out, x.stride(0), x.stride(1), *strides, channels, outputs,
            *x.shape[2:], tiles, **sizes
        )  # fmt: skip
    return out


def _packed(weight: Tensor, most: int) -> Tensor:
    """The weights of a convolution as its kernel takes them, for programs that compute `most` channels."""
    outputs, channels = weight.shape[:2]
    padded = F.pad(weight.flatten(2), (0, 0, 0, -channels % FEWEST_TERMS, 0, -outputs % most))
    return padded.unflatten(1, (-1, FEWEST_TERMS)).permute(3, 1, 0, 2).contiguous()


def _normalise_then_project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        return F.conv2d(normalise(x), weight, bias)
    return _project(normalise(x), weight)


def _gate_project(x: Tensor, hidden: Tensor, bias: Tensor, depthwise: Tensor, proj_out: Tensor) -> Tensor:
    """``x + proj_out @ gate``, of the halves of the filtered ``hidden + bias``."""
    batch, channels, height, width = x.shape
    x = _with_contiguous_planes(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    wide = block_size(channels)
    tiles, sizes = _tiles(x, max(FEWEST_TERMS, min(GATED, PROJECTED // wide)), 32)
    sizes |= {"CHANNELS": wide, "TERMS": FEWEST_TERMS, "num_warps": FEWEST_TERMS}  # a warp for each term
    parts = triton.cdiv(proj_out.shape[1], FEWEST_TERMS)
    sizes |= {"PARTS": parts, "PRECISION": _precision(x), "FACTOR": _factor(x, hidden.dtype)}
    with _on(x):
        kernels.gate_project[batch * tiles,](
            hidden, bias.contiguous(), depthwise.contiguous(), proj_out.contiguous(), x, out, x.stride(0), x.stride(1),
            proj_out.shape[1], channels, height, width, tiles, **sizes
        )  # fmt: skip
    return out


def _gate_then_project(x: Tensor, hidden: Tensor, bias: Tensor, depthwise: Tensor, proj_out: Tensor) -> Tensor:
    gated = hidden.new_empty(len(hidden), hidden.shape[1] // 2, *hidden.shape[2:])
    _filter(kernels.gate, hidden, bias, depthwise, gated)
    return planar.add_projection(x, gated, proj_out)


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """``weight @ x``: x [B, C, H, W], weight [O, C, 1, 1] -> [B, O, H, W]."""
    product = torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2))
    return product.unflatten(2, x.shape[2:])


def _attend_by_windows(layer: ChannelAttention, x: Tensor) -> Tensor:
    return planar.attend_in_windows(layer, x, STEPS)


def _attend_by_tiles(layer: ChannelAttention, x: Tensor) -> Tensor:
    """In tiles. Where memory is short, in strips of rows: then q and k are projected first, and later the values."""
    assert layer.window is not None
    x = _with_contiguous_planes(x)
    batch, channels, height, width = x.shape
    heads, dtype = len(layer.temperature), accumulation_dtype(x.dtype)
    of_head, rows = channels // heads, rows_of_strip(x, 4 * channels)
    side, wide = side_of_head(of_head), block_size(channels)
    highest = rows_of_values(wide)
    summed, attended = (tiles_of(height, width, layer.window, rows, most, x.device) for most in (SUMMED, highest))
    total = len(summed.tiles)
    sums = torch.empty(batch, total, heads, 2 * side, 2 * side, dtype=dtype, device=x.device)
    folded = torch.empty(batch, summed.windows, channels, channels, dtype=dtype, device=x.device)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tensors = planar.tensors_of_features(layer)
    sizes = {"PRECISION": _precision(x), "FACTOR": _factor(x, autocast.dtype_of(x)), "COLUMNS": TILE_COLUMNS}
    sizes["ACC"] = acc = _triton_dtype(dtype)

    def project_rows(strip: Strip, of: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Some channels of the rows of a strip and next to it, without their bias; their bias and filters."""
        weight, bias, depthwise = planar.channels_of(tensors, of)
        y = project(x[:, :, strip.first_row : strip.bottom + 1], weight, None)
        return y, bias.contiguous(), depthwise.contiguous()

    def add_up(strip: Strip, y: Tensor, bias: Tensor, depthwise: Tensor) -> None:
        kernels.channel_sums[batch * strip.tiles * heads,](
            y[:, : 2 * channels], bias, depthwise, summed.tiles, sums, y.stride(0), of_head, y.shape[2], width,
            strip.first_row, strip.first, strip.tiles, total, HEADS=heads, SIDE=side, ROWS=rows_of_sums(side),
            num_warps=warps_of_sums(side), **sizes
        )  # fmt: skip

    def attend(strip: Strip, y: Tensor, bias: Tensor, depthwise: Tensor) -> None:
        kernels.attend[batch * strip.tiles,](
            y[:, -channels:], bias[-channels:], depthwise[-channels:], attended.tiles, folded, x, out, x.stride(0),
            x.stride(1), y.stride(0), channels, y.shape[2], height, width, strip.first_row, strip.first, strip.tiles,
            attended.windows, ROWS=highest, CHANNELS=wide, TERMS=FEWEST_TERMS,
            PARTS=triton.cdiv(channels, FEWEST_TERMS), num_warps=FEWEST_TERMS, **sizes
        )  # fmt: skip

    with _on(x):
        first, *others = summed.strips
        features = project_rows(first, slice(2 * channels) if others else slice(None))
        add_up(first, *features)
        for strip in others:
            add_up(strip, *project_rows(strip, slice(2 * channels)))
        kernels.fold_attention[batch * summed.windows * heads,](
            sums, summed.members, summed.offsets, layer.temperature, layer.proj_out.contiguous(), folded, of_head,
            total, summed.windows, HEADS=heads, EPS=planar.NORM_EPS, SIDE=side, TERMS=max(FEWEST_TERMS, side),
            OUTPUTS=OUTPUTS, PARTS=triton.cdiv(channels, OUTPUTS), ACC=acc, num_warps=warps_of_sums(side)
        )  # fmt: skip
        for strip in attended.strips:
            attend(strip, *(project_rows(strip, slice(2 * channels, None)) if others else features))
    return out


def _filter(kernel: Any, x: Tensor, bias: Tensor, weight: Tensor, out: Tensor) -> None:
    """Run a kernel on all tiles of all planes of out."""
    batch, channels, height, width = out.shape
    tiles, sizes = _tiles(out)
    with _on(x):
        kernel[batch * channels * tiles,](
            x, bias.contiguous(), weight.contiguous(), out, channels, height, width, tiles, **sizes
        )


def _columns(x: Tensor, fewest: int = 1, values: int = NORMALISED) -> tuple[tuple[int], dict[str, Any]]:
    """The grid and the constants of kernels that normalise so many values, with room for at least `fewest` channels."""
    batch, channels, height, width = x.shape
    wide = max(fewest, triton.next_power_of_2(channels))
    pixels = max(16, values // wide)
    acc = _triton_dtype(accumulation_dtype(x.dtype))
    sizes = {"CHANNELS": wide, "PIXELS": pixels, "ACC": acc, "num_warps": WARPS}
    return (batch * triton.cdiv(height * width, pixels),), sizes


def _tiles(x: Tensor, pixels: int = TILE, widest: int = 64) -> tuple[int, dict[str, Any]]:
    """The number of tiles of a plane of x, and the constants of the kernels that filter; widest: columns of a tile."""
    height, width = x.shape[2:]
    columns = min(widest, pixels, max(16, triton.next_power_of_2(width)))
    rows = pixels // columns
    acc = _triton_dtype(accumulation_dtype(x.dtype))
    return triton.cdiv(height, rows) * triton.cdiv(width, columns), {"ROWS": rows, "COLUMNS": columns, "ACC": acc}


def _heads(gram: Tensor, temperature: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """The grid and the sizes of the kernels for attention."""
    heads = len(temperature)
    channels = gram.shape[1] // 2 // heads
    side = triton.next_power_of_2(channels)
    sizes = {"channels": channels, "HEADS": heads, "EPS": planar.NORM_EPS, "SIDE": side}
    return (len(gram) * heads,), sizes | {"ACC": _triton_dtype(gram.dtype), "num_warps": warps_of_head(side)}


def block_size(channels: int) -> int:
    """The power of two that has room for the channels, in products."""
    return max(FEWEST_TERMS, triton.next_power_of_2(channels))


def side_of_head(channels: int) -> int:
    """Half of the side of the matrices that `channel_sums` sums for a head: at least 8, for products of 16 terms."""
    return max(FEWEST_TERMS // 2, triton.next_power_of_2(channels))


def rows_of_sums(side: int) -> int:
    """Rows of a tile that a program of `channel_sums` filters at a time."""
    return max(1, FILTERED // (2 * side * TILE_COLUMNS))


def rows_of_values(wide: int) -> int:
    """Rows of a tile of `attend`; wide: the power of two that has room for its channels."""
    return max(1, min(ATTENDED, RESULTS // wide) // TILE_COLUMNS)


def warps_of_sums(side: int) -> int:
    """Warps of a program that has matrices of (2 * side) x (2 * side) values."""
    return max(4, side // 4)


def warps_of_head(side: int) -> int:
    """Warps of a program of the kernels for attention, which has arrays of side x side values."""
    return max(1, side**2 // 512)


def _triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))


def _factor(x: Tensor, dtype: torch.dtype) -> Any:
    """As what factors of a dtype are multiplied: Triton's interpreter, on the CPU, multiplies no bfloat16."""
    return _triton_dtype(accumulation_dtype(dtype) if x.is_cpu else dtype)


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of x current: Triton starts kernels there. On a CPU there is Triton's interpreter alone."""
    return contextlib.nullcontext() if x.is_cpu else getattr(torch, x.device.type).device(x.device)
