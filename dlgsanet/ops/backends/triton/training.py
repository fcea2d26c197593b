"""The layers in training by Triton kernels, each as one autograd function that keeps x and what is projected from it.

Nothing is folded: the first projection applies scale and shift of the normalisation, and its gradient's kernel adds
that of the layer's shortcut. All gradients of weights are sums of programs' sums, which one more kernel adds up.

Axes: B batch, C channels, H height, W width, O channels of a hidden tensor.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlgsanet.ops import autocast
from dlgsanet.ops.backends.cuda import modules
from dlgsanet.ops.backends.gradients import convolve, convolve_backward
from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.backends.triton import gradient_kernels as kernels
from dlgsanet.ops.backends.triton import steps
from dlgsanet.ops.constants import LAYER_NORM_EPS
from dlgsanet.ops.records import (
    ChannelAttention,
    GatedFeedForward,
    LocalAttention,
    Record,
    dynamic_conv_of,
    map_tensors,
)

PROGRAMS = 264  # that share out the pixels of a batch, at most, unless it has more images: two for each of 132 SMs
COLUMNS = 16  # of a tile
SHARE = 64  # pixels of the smallest share
FILTERED, PROJECTED = 1024, 8192  # values of a tile that a program filters and projects at a time
SUMMED = 64  # columns of a program that adds up
WARPS = 8
WIDEST, WIDEST_HEAD = 128, 32  # channels of x, and of a head: with more, tiles would not fit into shared memory


def gated_feed_forward(layer: GatedFeedForward, x: Tensor) -> Tensor:
    return _FeedForward.apply(x, *layer)


def channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """With ReLU and without windows: see `refuses`."""
    return _ChannelAttention.apply(x, *layer[:6])


def dynamic_local_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    return _LocalAttention.apply(x, *layer)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layer: Tensor) -> Tensor:
        x, norm_weight, norm_bias, proj_in, depthwise, proj_out = (t.contiguous() for t in (x, *layer))
        hidden, _ = _project(x, norm_weight, norm_bias, proj_in)
        ctx.save_for_backward(hidden, x, norm_weight, norm_bias, proj_in, depthwise, proj_out)
        out, (channels, height, width), half = torch.empty_like(x), x.shape[1:], proj_out.shape[1]
        tiles, sizes = steps._tiles(x, COLUMNS * steps.rows_of_values(steps.block_size(channels)), COLUMNS)
        with steps._on(x):
            kernels.gate_project[len(x) * tiles,](
                hidden, depthwise, proj_out, x, out, half, channels, height, width, tiles,
                CHANNELS=steps.block_size(channels), TERMS=steps.FEWEST_TERMS, num_warps=steps.FEWEST_TERMS,
                PARTS=triton.cdiv(half, steps.FEWEST_TERMS), **_factors(x, hidden), **sizes
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, x, norm_weight, norm_bias, proj_in, depthwise, proj_out = ctx.saved_tensors
        grad, half, (channels, height, width) = grad.contiguous(), proj_out.shape[1], x.shape[1:]
        parts = triton.cdiv(half, steps.FEWEST_TERMS)
        most = _multiprocessors(x)
        sums = _Sums(
            x, _programs_of_image(x, most), [norm_weight, norm_bias, proj_in],
            _programs_of_image(x, min(most, 2 * PROGRAMS // parts)), depthwise, proj_out
        )  # fmt: skip
        grad_halves = _bordered(x, 2 * half, hidden.dtype)
        sizes = _shared_out(x, hidden, _pixels_of_parts(x, hidden), sums.per_image_of_parts)
        with steps._on(x):
            kernels.gate_project_backward[sums.fewer * parts,](
                grad, hidden, depthwise, proj_out, grad_halves, sums.of(depthwise), sums.of(proj_out),
                sums.stride, half, channels, height, width, sums.per_image_of_parts, PARTS=parts,
                CHANNELS=steps.block_size(channels), TERMS=steps.FEWEST_TERMS, num_warps=WARPS, **sizes
            )  # fmt: skip
        grad_x = _filter_project_backward(grad_halves, depthwise, x, norm_weight, norm_bias, proj_in, grad, sums)
        return grad_x, *sums.add_up()


class _ChannelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layer: Tensor) -> Tensor:
        x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out = (t.contiguous() for t in (x, *layer))
        hidden, _ = _project(x, norm_weight, norm_bias, qkv_weight)
        batch, channels, height, width = x.shape
        heads = _heads(x, temperature)
        per_image = _programs_of_image(x, PROGRAMS // heads["HEADS"])
        side = 2 * heads["SIDE"]
        products = hidden.new_empty(batch * per_image, heads["HEADS"], side, side, dtype=accumulation_dtype(x.dtype))
        folded, out = products.new_empty(batch, channels, channels), torch.empty_like(x)
        sizes = _shared_out(x, hidden, FILTERED // side, per_image) | {"PRECISION": steps._precision(x)}
        tiles, of_attend = steps._tiles(x, COLUMNS * steps.rows_of_values(steps.block_size(channels)), COLUMNS)
        with steps._on(x):
            kernels.products[batch * per_image * heads["HEADS"],](
                hidden[:, : 2 * channels], depthwise[: 2 * channels], products, channels // heads["HEADS"], height,
                width, per_image, HEADS=heads["HEADS"], SIDE=heads["SIDE"], num_warps=WARPS, **sizes
            )  # fmt: skip
            kernels.fold[batch * heads["HEADS"],](
                products, temperature, proj_out, folded, per_image, channels // heads["HEADS"], **heads
            )
            kernels.attend[batch * tiles,](
                hidden[:, 2 * channels :], depthwise[2 * channels :], folded, x, out, channels, height, width, tiles,
                CHANNELS=steps.block_size(channels), TERMS=steps.FEWEST_TERMS, num_warps=steps.FEWEST_TERMS,
                PARTS=triton.cdiv(channels, steps.FEWEST_TERMS), **_factors(x, hidden), **of_attend
            )  # fmt: skip
        ctx.save_for_backward(
            hidden, products, folded, x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, products, folded, x, norm_weight, norm_bias, qkv_weight, depthwise, temperature, proj_out = (
            ctx.saved_tensors
        )
        grad, (batch, channels, height, width) = grad.contiguous(), x.shape
        heads = _heads(x, temperature)
        per_image, parts = _programs_of_image(x, _multiprocessors(x)), triton.cdiv(channels, steps.FEWEST_TERMS)
        sums = _Sums(x, per_image, [norm_weight, norm_bias, qkv_weight, depthwise])
        of_images = _Sums(x, 1, [temperature, proj_out])
        folded_sums = folded.new_empty(sums.programs, channels, channels)
        grad_products = folded.new_empty(batch, *products.shape[1:])
        grad_features, of_depthwise = _bordered(x, 3 * channels, hidden.dtype), sums.of(depthwise)
        sizes = _shared_out(x, hidden, FILTERED // products.shape[2], per_image)
        in_16_bits = hidden.dtype.itemsize == 2 and steps._has_tf32(x.device)
        # The gradients of products need more exponents than those of float16.
        sizes |= {"FACTOR": heads["ACC"], "PRECISION": "tf32" if in_16_bits else steps._precision(x)}
        with steps._on(x):
            kernels.attend_backward[sums.programs * parts,](
                grad, hidden[:, 2 * channels :], depthwise[2 * channels :], folded, grad_features[:, 2 * channels :],
                of_depthwise[:, 18 * channels :], folded_sums, sums.stride, channels, height, width, per_image,
                PARTS=parts, CHANNELS=steps.block_size(channels), TERMS=steps.FEWEST_TERMS, num_warps=WARPS,
                **_shared_out(x, hidden, _pixels_of_parts(x, hidden), per_image)
            )  # fmt: skip
            kernels.fold_backward[batch * heads["HEADS"],](
                products, temperature, proj_out, folded_sums, grad_products, of_images.of(temperature),
                of_images.of(proj_out), len(products) // batch, per_image, of_images.stride,
                channels // heads["HEADS"], **heads
            )  # fmt: skip
            kernels.products_backward[sums.programs * heads["HEADS"],](
                grad_products, hidden[:, : 2 * channels], depthwise[: 2 * channels], grad_features[:, : 2 * channels],
                of_depthwise[:, : 18 * channels], sums.stride, channels // heads["HEADS"], height, width, per_image,
                HEADS=heads["HEADS"], SIDE=heads["SIDE"], num_warps=WARPS, **sizes
            )  # fmt: skip
        grad_x = _filter_project_backward(grad_features, depthwise, x, norm_weight, norm_bias, qkv_weight, grad, sums)
        return grad_x, *sums.add_up(), *of_images.add_up()


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        x = x.contiguous()
        layer = map_tensors(LocalAttention(*fields), Tensor.contiguous)
        y, squeezed = _project(x, *layer[:5])
        padding = layer.window_size // 2
        z = F.conv2d(squeezed, layer.spatial_weight, layer.spatial_bias, padding=padding, groups=len(squeezed[0]))
        filtered = convolve(None, dynamic_conv_of(layer, z), y)
        ctx.save_for_backward(y, squeezed, z, filtered, x, *layer[:-1])
        ctx.window_size = layer.window_size
        return planar.add_projection(x, filtered, layer.proj_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, squeezed, z, filtered, x = ctx.saved_tensors[:5]
        layer = LocalAttention._make([*ctx.saved_tensors[5:], ctx.window_size])
        grad, (channels, height, width), features = grad.contiguous(), x.shape[1:], squeezed.shape[1]
        sums = _Sums(x, _programs_of_image(x, _multiprocessors(x)), [*layer[:5], layer.proj_out])
        grad_filtered, grad_x = torch.empty_like(filtered), torch.empty_like(x)
        sizes = _shared_out(x, y, _pixels_at_once(channels), sums.per_image)
        sizes |= {"CHANNELS": steps.block_size(channels), "TERMS": steps.FEWEST_TERMS, "num_warps": WARPS}
        sizes["PARTS"] = triton.cdiv(channels, steps.FEWEST_TERMS)
        with steps._on(x):
            kernels.project_backward[sums.programs,](
                grad, filtered, layer.proj_out, grad_filtered, sums.of(layer.proj_out), sums.stride, channels, height,
                width, sums.per_image, **sizes
            )  # fmt: skip
        of_y, of_z, *of_filters = convolve_backward(None, dynamic_conv_of(layer, z), y, grad_filtered)
        padding = [layer.window_size // 2] * 2
        of_squeezed, *of_spatial = torch.ops.aten.convolution_backward(
            of_z, squeezed, layer.spatial_weight.to(z.dtype), [features], [1, 1], padding, [1, 1], False, [0, 0],
            features, [True] * 3
        )  # fmt: skip
        with steps._on(x):
            kernels.squeeze_project_backward[sums.programs,](
                of_y, of_squeezed.contiguous(), y, layer.squeeze_weight, x, *layer[:3], grad, grad_x,
                *map(sums.of, layer[:5]), sums.stride, channels, features, height, width, sums.per_image,
                EPS=LAYER_NORM_EPS, FEATURES=steps.block_size(features), **sizes
            )  # fmt: skip
        *of_first, of_last = sums.add_up()
        others = zip([*of_spatial, *of_filters], layer[5:9], strict=True)
        return grad_x, *of_first, *(g.view_as(t).to(t.dtype) for g, t in others), of_last, None


def _heads(x: Tensor, temperature: Tensor) -> dict[str, Any]:
    """The constants of the kernels that work on the matrices of a head."""
    channels, heads = x.shape[1], len(temperature)
    side = steps.side_of_head(channels // heads)
    sizes = {"HEADS": heads, "EPS": planar.NORM_EPS, "SIDE": side, "TERMS": max(steps.FEWEST_TERMS, side)}
    acc = steps._triton_dtype(accumulation_dtype(x.dtype))
    sizes |= {"OUTPUTS": steps.OUTPUTS, "PARTS": triton.cdiv(channels, steps.OUTPUTS)}
    return sizes | {"ACC": acc, "num_warps": steps.warps_of_sums(side)}


def _project(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
    squeeze: Tensor | None = None, squeeze_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``y = weight @ (scale * normalise(x) + shift)`` and ``squeeze @ y + squeeze_bias``.

    Shapes: x [B, C, H, W], weight [O, C, 1, 1], y [B, O, H, W]; squeeze [D, O, 1, 1], its bias [D]. Without squeeze, y
    is `_bordered`, and the second result is empty.
    """
    features, (height, width) = 0 if squeeze is None else len(squeeze), x.shape[2:]
    dtype = autocast.dtype_of(x)
    squeezed = torch.empty(len(x), features, height, width, dtype=dtype, device=x.device)
    size = len(x), len(weight), height, width
    out = squeezed.new_empty(size) if features else _bordered(x, len(weight), dtype)
    factors = _factors(x, out)
    grid, sizes = steps._columns(x, steps.FEWEST_TERMS, _at_once(PROJECTED, factors))
    with steps._on(x):
        kernels.project[grid](
            x, scale, shift, weight, out, squeeze, squeeze_bias, squeezed, x.shape[1], len(weight), features, height,
            width, EPS=LAYER_NORM_EPS, OUTPUTS=steps.OUTPUTS, PARTS=triton.cdiv(len(weight), steps.OUTPUTS),
            FEATURES=steps.block_size(features) if features else 0, BORDER=not features, **factors, **sizes
        )  # fmt: skip
    return out, squeezed


def _bordered(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Memory for planes with borders [B, channels, H + 1, W + 1], which the zeros after the last one follow."""
    size = len(x), channels, x.shape[2] + 1, x.shape[3] + 1
    memory = torch.empty(math.prod(size) + x.shape[3] + 2, dtype=dtype, device=x.device)
    return memory[: math.prod(size)].view(size)


def _filter_project_backward(
    grad: Tensor, depthwise: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, shortcut: Tensor,
    sums: "_Sums",
) -> Tensor:  # fmt: skip
    """The gradient of x, plus that of its shortcut, from that of depthwise_3x3(_project(x, scale, shift, weight))."""
    grad_x = torch.empty_like(x)
    channels, height, width = x.shape[1:]
    sizes = _shared_out(x, grad, _pixels_at_once(channels), sums.per_image)
    with steps._on(x):
        kernels.filter_project_backward[sums.programs,](
            grad, depthwise, x, scale, shift, weight, shortcut, grad_x, sums.of(scale), sums.of(shift),
            sums.of(weight), sums.stride, channels, len(weight), height, width, sums.per_image,
            EPS=LAYER_NORM_EPS, CHANNELS=steps.block_size(channels), PARTS=triton.cdiv(len(weight), steps.FEWEST_TERMS),
            TERMS=steps.FEWEST_TERMS, num_warps=WARPS, **sizes
        )  # fmt: skip
    return grad_x


def _multiprocessors(x: Tensor) -> int:
    """The multiprocessors of the GPU of x. Each has room for one program of most kernels of a backward pass."""
    return modules.multiprocessors(x.device) if x.device.type == "cuda" else PROGRAMS // 2


def _programs_of_image(x: Tensor, most: int) -> int:
    """Among how many programs the pixels of an image are shared out, if all images have about `most` programs."""
    shares = triton.cdiv(x.shape[2:].numel(), SHARE)
    return triton.cdiv(shares, triton.cdiv(len(x) * shares, max(1, most)))


def _pixels_at_once(channels: int) -> int:
    """Pixels of a tile of which a program of a backward pass filters a part of the channels, and projects all."""
    return min(FILTERED // steps.FEWEST_TERMS, PROJECTED // steps.block_size(channels))


def _pixels_of_parts(x: Tensor, hidden: Tensor) -> int:
    """The same where a program keeps the sums of a part of the channels: half as many, if it has too few registers."""
    pixels, exact = _pixels_at_once(x.shape[1]), _factors(x, hidden)["PRECISION"] == "tf32x3"
    # Only on sm_90 products read factors from shared memory.
    return pixels // 2 if exact and x.shape[1] > 64 and modules.capability(x.device)[0] != 9 else pixels


def _shared_out(x: Tensor, hidden: Tensor, pixels: int, per_image: int) -> dict[str, Any]:
    """The constants of kernels whose programs share out the tiles of so many pixels."""
    factors = _factors(x, hidden)
    tiles, sizes = steps._tiles(x, max(steps.FEWEST_TERMS, _at_once(pixels, factors)), COLUMNS)
    return sizes | factors | {"ROUNDS": triton.cdiv(tiles, per_image)}


def _at_once(count: int, factors: dict[str, Any]) -> int:
    """How many pixels or values of so many: exact products need more registers and shared memory."""
    return count // 2 if factors["PRECISION"] == "tf32x3" else count


def _factors(x: Tensor, hidden: Tensor) -> dict[str, Any]:
    """How products are computed: in the dtype of hidden tensors, or in float32, exactly or in TF32."""
    precision = steps._precision(x)
    if precision == "ieee" and steps._has_tf32(x.device):
        precision = "tf32x3"  # exact to 21 bits, by tensor cores
    return {"PRECISION": precision, "FACTOR": steps._factor(x, hidden.dtype)}


class _Sums:
    """The sums of programs that become the gradients of weights.

    A row is that of a program that shares out the pixels of an image with others. There may be fewer rows for the last
    weights, whose programs are many because each computes a part of the channels.

    Attributes:
        per_image, per_image_of_parts: programs, or shares of pixels, for each image.
        stride: numbers of a row.
    """

    def __init__(
        self, x: Tensor, per_image: int, weights: Sequence[Tensor], per_image_of_parts: int = 0, *of_parts: Tensor
    ):
        self.per_image, self.per_image_of_parts = per_image, per_image_of_parts
        self.programs, self.fewer = len(x) * per_image, len(x) * per_image_of_parts
        self.split, self.weights = sum(w.numel() for w in weights), (*weights, *of_parts)
        sizes = [w.numel() for w in self.weights]
        self.stride = sum(sizes)
        self.rows = torch.empty(self.programs, self.stride, dtype=accumulation_dtype(x.dtype), device=x.device)
        columns = self.rows.split(sizes, 1)
        self.columns = [*columns[: len(weights)], *(c[: self.fewer] for c in columns[len(weights) :])]

    def of(self, weight: Tensor) -> Tensor:
        """The columns for a weight."""
        return next(part for part, w in zip(self.columns, self.weights, strict=True) if w is weight)

    def add_up(self) -> list[Tensor]:
        """The gradients of the weights."""
        dtypes = {w.dtype for w in self.weights}
        out = self.rows.new_empty(self.stride, dtype=dtypes.pop() if len(dtypes) == 1 else None)
        with steps._on(out):
            kernels.add_up[triton.cdiv(self.stride, SUMMED),](
                self.rows, out, self.programs, self.fewer, self.split, self.stride, ROWS=16, COLUMNS=SUMMED
            )
        parts = out.split([w.numel() for w in self.weights])
        return [p.view_as(w).to(w.dtype) for p, w in zip(parts, self.weights, strict=True)]


def refuses(record: Record, x: Tensor) -> str | None:
    """Why there are no gradients for a layer, or None."""
    if x.shape[1] > WIDEST:
        return f"it has no gradients for more than {WIDEST} channels"
    if x.device.type == "cuda" and modules.capability(x.device) < (8, 0):  # too little shared memory
        return "its gradients need compute capability 8.0"
    planes = max(len(t) for t in record if isinstance(t, Tensor))
    if planes * (x.shape[2] + 1) * (x.shape[3] + 1) >= 2**31:  # offsets into an image have 32 bits
        return "it has no gradients for images this large"
    if isinstance(record, ChannelAttention):
        wide = x.shape[1] // len(record.temperature) > WIDEST_HEAD
        if record.activation != "relu" or wide:
            return "it has no gradients for this attention"
    return None
