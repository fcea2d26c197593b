"""The layers on GPUs in PyTorch: [B, C, H, W] throughout, few operators, in strips where memory is short.

The same functions serve inference and training. With gradients there is one strip and nothing is written in place. The
dynamic convolution uses the fastest backend that supports it.

Axes: B batch, C channels, H height, W width, D channels of the feature that filters are formed from; n windows of
test-time local conversion, p pixels of a window.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops import autocast
from dlgsanet.ops.backends.gradients import convolve
from dlgsanet.ops.backends.reference import accumulation_dtype, select_similarities
from dlgsanet.ops.backends.torch.frozen import derived
from dlgsanet.ops.backends.torch.mixing import in_heads
from dlgsanet.ops.backends.torch.strip_rows import fits, rows_of_strip
from dlgsanet.ops.cached_tensors import cached_tensors
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import ChannelAttention, FusedDynamicConv, GatedFeedForward, Layer, LocalAttention
from dlgsanet.ops.windows import window_starts

NORM_EPS = 1e-24  # added to sums of squares; torch.nn.functional.normalize keeps norms above 1e-12


class Kept(NamedTuple):
    """Values that a layer keeps for the backward pass, for each of its input: the mean of a network's layers."""

    hidden: int  # in the dtype of hidden tensors, which autocast lowers
    sums: int  # in the dtype in which sums are formed
    images: int = 0  # in the dtype of x

    def bytes_of(self, x: Tensor) -> int:
        """Per value of x."""
        sums = self.sums * accumulation_dtype(x.dtype).itemsize
        return self.hidden * autocast.dtype_of(x).itemsize + sums + self.images * x.itemsize


KEPT = Kept(9, 2)


class Steps(NamedTuple):
    """What the layers do between matrix products; other backends have faster ones.

    `features` and `feed_forward` take x [B, C, H, W], weight [O, C, 1, 1] and bias [O] of a projection, and the
    depth-wise weight [O, 1, 3, 3].
    """

    # (layer, x, weight and bias of the projection to y and to its squeezed form) -> the layer's result
    local_attention: Callable[[LocalAttention, Tensor, Tensor, Tensor], Tensor]
    # depthwise_3x3(weight @ y + bias); y: each pixel normalised over C
    features: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    # (`features` arguments, proj_out) -> x + proj_out @ (gelu(a) * b) for the halves a, b of these features
    feed_forward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    windows: Callable[..., Tensor]  # (`features` arguments, top, plan) -> those in windows [n, O, p]; see `_windows`
    attention: Callable[[ChannelAttention, Tensor], Tensor]  # qk [n, 2 * C, p] -> the result of `_matrices`
    attend_in_windows: Callable[[ChannelAttention, Tensor], Tensor]  # the layer with test-time windows


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight @ y + bias``; y: each pixel of x normalised over its channels."""
    return F.conv2d(_normalise(x), weight, bias)


def local_attention(
    layer: LocalAttention,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    project: Callable[[Tensor, Tensor, Tensor], Tensor] = project,
) -> Tensor:
    squeezed = len(layer.squeeze_bias)
    y, z = project(x, weight, bias).split([x.shape[1], squeezed], 1)
    padding = layer.window_size // 2
    z = F.conv2d(z, layer.spatial_weight, layer.spatial_bias, padding=padding, groups=squeezed)
    weight, bias = _filter_weights(layer)
    convolution = FusedDynamicConv(z, weight, bias, layer.window_size)
    filtered = convolve(None, convolution, y)
    del y, z, convolution
    return add_projection(x, filtered, layer.proj_out)


def _filter_weights(layer: LocalAttention) -> tuple[Tensor, Tensor]:
    """Weight [G * K * K, D] and bias of the filters, in the dtype in which the convolution forms its sums."""
    weight, bias = layer.filter_weight, layer.filter_bias
    return derived(lambda: (_exact(weight.flatten(1)), _exact(bias)), bias, weight)


def _features(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor) -> Tensor:
    return F.conv2d(project(x, weight, bias), depthwise, padding=1, groups=len(depthwise))


def _windows(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor, top: int, plan: "Plan") -> Tensor:
    """`features` of x [1, C, rows, W] in the windows of a plan, whose first row is row `top` of x."""
    rows = _features(x, weight, bias, depthwise)[0, :, top:].flatten(1)
    return rows.index_select(1, plan.pixels).unflatten(1, (plan.windows, -1)).transpose(0, 1)


def _feed_forward(x: Tensor, weight: Tensor, bias: Tensor, depthwise: Tensor, proj_out: Tensor) -> Tensor:
    a, b = _features(x, weight, bias, depthwise).chunk(2, 1)
    gate = F.gelu(a)
    return add_projection(x, gate * b if torch.is_grad_enabled() else gate.mul_(b), proj_out)


def _normalise(x: Tensor) -> Tensor:
    """Each pixel less its mean over C, over its standard deviation."""
    batch, channels, height, width = x.shape
    if batch == 1 and channels > 1 and x.is_contiguous():
        # With pixels as its channels and channels as its batch, batch normalisation does it in one operator.
        pixels = x.view(channels, height * width)
        return F.batch_norm(pixels, None, None, training=True, eps=LAYER_NORM_EPS).view_as(x)
    exact = _exact(x)
    var, mean = torch.var_mean(exact, 1, correction=0, keepdim=True)
    scale = torch.rsqrt(var + LAYER_NORM_EPS)
    return torch.addcmul(-mean * scale, exact, scale).to(x.dtype)


def _attention(layer: ChannelAttention, qk: Tensor) -> Tensor:
    with autocast.off(qk.device.type):
        return _matrices(layer, torch.baddbmm(_epsilon(qk.dtype, qk.device), qk, qk.transpose(1, 2)))


def _matrices(layer: ChannelAttention, gram: Tensor) -> Tensor:
    """Matrices [n, C, C] that map values to the attention's result, from products of q and k with themselves.

    Args:
        layer: supplies the temperature and the activation.
        gram: [n, 2 * C, 2 * C], sums over pixels of the products of all channels of q and k.
    """
    channels, heads = gram.shape[1] // 2, len(layer.temperature)
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt()  # 1 / norms of q, then of k
    similarities = gram[:, :channels, channels:] * scale[:, :channels, None] * scale[:, None, channels:]
    similarities = in_heads(similarities, heads) * layer.temperature
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    if heads == 1:
        return weights.squeeze(1)
    return torch.diag_embed(weights.movedim(1, -1), dim1=1, dim2=3).flatten(3).flatten(1, 2)


def attend_in_windows(layer: ChannelAttention, x: Tensor, steps: Steps) -> Tensor:
    """Test-time local conversion, image by image."""
    assert layer.window is not None
    images = [_attend_in_windows(layer, image, layer.window, steps) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


STEPS: Steps = Steps(
    local_attention, _features, _feed_forward, _windows, _attention, lambda layer, x: attend_in_windows(layer, x, STEPS)
)


def gated_feed_forward(layer: GatedFeedForward, x: Tensor, steps: Steps = STEPS) -> Tensor:
    weight, bias = _fold(layer.norm_weight, layer.norm_bias, layer.proj_in)

    def compute(x: Tensor) -> Tensor:
        return steps.feed_forward(x, weight, bias, layer.depthwise, layer.proj_out)

    return in_strips(compute, x, halo=1, floats=2.5 * len(layer.proj_in))


def dynamic_local_attention(layer: LocalAttention, x: Tensor, steps: Steps = STEPS) -> Tensor:
    """One projection computes y and its squeezed form, because ``squeeze(proj_in(x))`` is a projection of x too."""
    weight, bias = derived(lambda: fold_squeezed(layer), *layer[:5])

    def compute(x: Tensor) -> Tensor:
        return steps.local_attention(layer, x, weight, bias)

    return in_strips(compute, x, halo=layer.window_size // 2, floats=4 * x.shape[1])


def channel_attention(layer: ChannelAttention, x: Tensor, steps: Steps = STEPS) -> Tensor:
    return _attend_everywhere(layer, x, steps) if layer.window is None else steps.attend_in_windows(layer, x)


def _attend_everywhere(layer: ChannelAttention, x: Tensor, steps: Steps) -> Tensor:
    """Attention over the whole image: sums over its strips, then one matrix for all pixels."""
    channels = x.shape[1]
    tensors = tensors_of_features(layer)

    def features_of(x: Tensor, of: slice) -> Tensor:
        return steps.features(x, *channels_of(tensors, of))

    def apply(x: Tensor, values: Tensor) -> Tensor:
        attended = torch.bmm(matrices.to(values.dtype), values.flatten(2)).view_as(values)
        return add_projection(x, attended, layer.proj_out)

    strips = _strips(x, 1, 9 * channels)
    if len(strips) == 1:
        qk, values = features_of(x, slice(None)).split([2 * channels, channels], 1)
        matrices = steps.attention(layer, _exact(qk.flatten(2)))
        return apply(x, values)

    gram = torch.zeros((), device=x.device)
    for rows, part in strips:
        qk = _exact(features_of(part, slice(2 * channels))[:, :, rows.inside].flatten(2))
        with autocast.off(x.device.type):
            gram = gram + torch.bmm(qk, qk.transpose(1, 2))
    with autocast.off(x.device.type):
        matrices = _matrices(layer, gram + NORM_EPS)

    def compute(x: Tensor) -> Tensor:
        return apply(x, features_of(x, slice(2 * channels, None)))

    return in_strips(compute, x, halo=1, floats=9 * channels)


def _attend_in_windows(layer: ChannelAttention, x: Tensor, window: int, steps: Steps) -> Tensor:
    """Test-time local conversion of one image, by strips of whole rows of windows.

    The sums of a row of windows are formed first. A pixel then gets the mean of the results of its windows: of the
    first and last row and column of windows that contain it, since no pixel is in more than two of them.
    """
    channels, (height, width) = x.shape[1], x.shape[2:]
    tensors = tensors_of_features(layer)

    def cut(rows: slice, plan: Plan, of: slice) -> Tensor:
        start, stop = max(rows.start - 1, 0), min(rows.stop + 1, height)
        return steps.windows(x[:, :, start:stop], *channels_of(tensors, of), rows.start - start, plan)

    starts = window_starts(height, window)
    high = min(height, window)
    rows_at_once = rows_of_strip(x, 12 * channels)
    at_once = max(1, sum(start + high <= rows_at_once for start in starts))
    groups = [range(i, min(i + at_once, len(starts))) for i in range(0, len(starts), at_once)]
    matrices = []
    for group in groups:
        rows = slice(starts[group[0]], starts[group[-1]] + high)
        of = slice(None) if len(groups) == 1 else slice(2 * channels)
        plan = _plan(rows.start, rows.stop, height, width, window, group.start, group.stop, x.device)
        features = cut(rows, plan, of)  # with all windows in one group, the values too
        matrices.append(steps.attention(layer, _exact(features[:, : 2 * channels])))
    out: Tensor | None = None
    matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
    across = len(window_starts(width, window))
    for group in groups:
        rows = slice(starts[group[0]], height if group[-1] + 1 == len(starts) else starts[group[-1] + 1])
        holders = range(max(0, group[0] - 1), group.stop)
        plan = _plan(rows.start, rows.stop, height, width, window, holders.start, holders.stop, x.device)
        if len(groups) > 1:
            features = cut(rows, plan, slice(2 * channels, None))
        values = features[:, -channels:]
        of_holders = matrix[holders.start * across : holders.stop * across].to(values.dtype)
        attended = torch.bmm(values.transpose(1, 2), of_holders.transpose(1, 2)).flatten(0, 1)  # [n * p, C]
        mean = F.embedding_bag(plan.places, attended, plan.offsets, mode="mean")  # [pixels, C]
        part = add_projection(x[:, :, rows], mean.t().unsqueeze(0), layer.proj_out)
        if len(groups) == 1:
            return part
        out = torch.empty_like(x) if out is None else out
        out[:, :, rows] = part
    assert out is not None
    return out


class Plan(NamedTuple):
    """Where the pixels of windows lie in some rows of an image, and where the results of each pixel are."""

    pixels: Tensor  # [n * p], indices into [rows * W]
    windows: int  # n
    places: Tensor  # [rows * W * 4], indices into the results [n * p] of windows, four for each pixel
    offsets: Tensor  # [rows * W], where the places of each pixel begin


@cached_tensors(maxsize=32)
def _plan(
    start: int, stop: int, height: int, width: int, window: int, first: int, last: int, device: torch.device
) -> Plan:
    """The plan of rows [start, stop) of an image and the rows of windows [first, last)."""
    down = torch.tensor(window_starts(height, window)[first:last], device=device)
    across = torch.tensor(window_starts(width, window), device=device)
    high, wide = min(height, window), min(width, window)
    rows = (down[:, None] + torch.arange(high, device=device)).clamp(start, stop - 1) - start  # [windows down, high]
    columns = across[:, None] + torch.arange(wide, device=device)
    pixels = rows[:, None, :, None] * width + columns[None, :, None, :]
    row, in_row = _places(torch.arange(start, stop, device=device), down, high)  # [2, pixels of the axis]
    column, in_column = _places(torch.arange(width, device=device), across, wide)
    row, in_row = row[:, None, :, None], in_row[:, None, :, None]
    places = ((row * len(across) + column[None, :, None]) * high + in_row) * wide + in_column[None, :, None]
    places = places.flatten(0, 1).flatten(1).t().flatten().int()
    offsets = torch.arange(0, len(places), 4, dtype=torch.int32, device=device)
    return Plan(pixels.flatten().int(), len(down) * len(across), places, offsets)


def _places(pixels: Tensor, starts: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The first and last window that contain each pixel of an axis [2, pixels], and where it lies in them."""
    last = torch.searchsorted(starts, pixels, right=True) - 1
    first = torch.searchsorted(starts + side, pixels, right=True)
    windows = torch.stack([first, last])
    return windows, pixels - starts[windows]


def tensors_of_features(layer: ChannelAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of the projection of normalised pixels to q, k and v, and the depth-wise weight."""
    return *_fold(layer.norm_weight, layer.norm_bias, layer.qkv_weight), layer.depthwise


def channels_of(tensors: tuple[Tensor, ...], of: slice) -> tuple[Tensor, ...]:
    """Some of the channels of tensors that begin with an axis of channels; all of them: the tensors themselves."""
    return tensors if of == slice(None) else tuple(t[of] for t in tensors)


@functools.cache
def _epsilon(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((1, 1, 1), NORM_EPS, dtype=dtype, device=device)


def _exact(x: Tensor) -> Tensor:
    """x in the dtype in which sums are formed."""
    return x.to(accumulation_dtype(x.dtype))


def fold_squeezed(layer: LocalAttention) -> tuple[Tensor, Tensor]:
    """Weight and bias of the projection to y and to its squeezed form."""
    weight, bias = _fold(layer.norm_weight, layer.norm_bias, layer.proj_in)
    squeeze = layer.squeeze_weight.flatten(1)
    weight = torch.cat([weight.flatten(1), squeeze @ weight.flatten(1)])[..., None, None]
    return weight, torch.cat([bias, torch.addmv(layer.squeeze_bias, squeeze, bias)])


def _fold(norm_weight: Tensor, norm_bias: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """The projection of normalised pixels, with the scale and shift of the normalisation: weight and bias."""

    def fold() -> tuple[Tensor, Tensor]:
        weight = projection.flatten(1)
        return (weight * norm_weight)[..., None, None], weight @ norm_bias

    return derived(fold, norm_weight, norm_bias, projection)


def add_projection(x: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """``x + weight @ hidden``: x [B, C, H, W], hidden [B, channels, H, W] or [B, channels, H * W]."""
    hidden = hidden.flatten(2)
    if hidden.dtype != x.dtype:  # under autocast
        return (x + torch.matmul(weight.flatten(1), hidden).view_as(x)).to(x.dtype)
    return torch.baddbmm(x.flatten(2), weight.flatten(1).to(x.dtype).expand(len(x), -1, -1), hidden).view(x.shape)


class Rows(NamedTuple):
    """Rows of a strip in the image, and where they lie in the strip with its halo."""

    of_image: slice
    inside: slice


def _strips(x: Tensor, halo: int, floats: float) -> list[tuple[Rows, Tensor]]:
    """The strips of x [B, C, H, W] with their halos; floats: hidden values per pixel. One strip with gradients."""
    height = x.shape[2]
    rows = height if torch.is_grad_enabled() else rows_of_strip(x, floats)
    if rows >= height:
        return [(Rows(slice(0, height), slice(0, height)), x)]
    strips = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - halo, 0), min(bottom + halo, height)
        strips.append((Rows(slice(top, bottom), slice(top - first, bottom - first)), x[:, :, first:last]))
    return strips


def in_strips(compute: Callable[[Tensor], Tensor], x: Tensor, halo: int, floats: float) -> Tensor:
    """``compute(x)``, of x's shape, strip by strip. Zero padding is right only at the border."""
    strips = _strips(x, halo, floats)
    if len(strips) == 1:
        return compute(x)
    out = torch.empty_like(x)
    for rows, part in strips:
        out[:, :, rows.of_image] = compute(part)[:, :, rows.inside]
    return out


def recomputing(function: Callable[..., Tensor], kept: Kept = KEPT) -> Callable[..., Tensor]:
    """The layer for training: where memory is short, it keeps its input only and computes the rest again."""

    def train(layer: Layer, x: Tensor) -> Tensor:
        if fits(x, kept.bytes_of(x)):
            return function(layer, x)
        return _Recomputing.apply(function, type(layer), x, *layer)

    return train


class _Recomputing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, kind: Any, x: Tensor, *fields: Any) -> Tensor:
        ctx.function, ctx.kind = function, kind
        ctx.settings = [None if isinstance(f, Tensor) else f for f in fields]
        ctx.save_for_backward(x, *(f if isinstance(f, Tensor) else None for f in fields))
        ctx.dtype = torch.get_autocast_dtype(x.device.type) if autocast.is_on(x.device.type) else None
        return function(kind(*fields), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = [
            None if t is None else t.detach().requires_grad_(n)
            for t, n in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        x, *tensors = saved
        fields = [s if t is None else t for t, s in zip(tensors, ctx.settings, strict=True)]
        device = grad.device.type
        with torch.enable_grad(), autocast.off(device) if ctx.dtype is None else torch.autocast(device, ctx.dtype):
            out = ctx.function(ctx.kind(*fields), x)
        wanted = [t for t in saved if t is not None and t.requires_grad]
        grads = iter(torch.autograd.grad(out, wanted, grad))
        return None, None, *(next(grads) if t is not None and t.requires_grad else None for t in saved)
