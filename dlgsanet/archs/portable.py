"""The network in plain tensor operations on images of any size, for programs that know nothing of this project.

`dlgsanet.archs` leaves whole layers to the backends of `dlgsanet.ops`: faster, but a custom operator in a graph, and
TLC windows in Python numbers. Here the dynamic convolution is a handful of products, and the places of the windows are
computed inside the graph from the image's size, so that one graph serves every height and width. Export takes time by
the operation and by the symbol: both are kept few. The parameters are those of the network; norms and similarities are
formed in float32 whatever its precision.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.feed_forward import GDFN, BaseFFN
from dlgsanet.archs.mhdlsa import MHDLSA, StaticLocalLayer
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.sparse_gsa import SparseGSA, tlc_window
from dlgsanet.ops.backends.reference import LAYER_NORM_EPS, select_similarities


class PortableDLGSANet(nn.Module):
    """A `DLGSANet` for export: float32 image [B, in_chans, H, W] in [0, 1] -> [B, in_chans, s * H, s * W], float32.

    Args:
        network: in evaluation mode; in float16, weights and features are, norms and similarities are not.
    """

    def __init__(self, network: DLGSANet):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        network = self.network
        kernel = tlc_window(network)
        windows = [_Windows(size, kernel, image.device) for size in image.shape[2:]] if kernel else None
        shallow = network.embed(image.to(network.shallow.weight.dtype))
        x = _norm(network.norm_before, shallow)
        for group in network.groups:
            y = x
            for block in group.get_submodule("blocks").children():
                for layer in block.children():
                    if isinstance(layer, SparseGSA):
                        y = y + _sparse_gsa(layer, y, windows)
                    else:
                        y = y + _LOCAL_LAYERS[type(layer)](layer, y)
            x = x + group.get_submodule("conv")(y)
        x = shallow + network.conv(_norm(network.norm_after, x))
        return network.restore(x).float()


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(norm, LayerNorm):
        return x
    y = F.layer_norm(
        _float(x).movedim(1, -1), norm.weight.shape, _float(norm.weight), _float(norm.bias), LAYER_NORM_EPS
    )
    return _as(y.movedim(-1, 1), x.dtype)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)`` that leaves nothing in the graph where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _float(x: Tensor) -> Tensor:
    return _as(x, torch.float32)


def _mhdlsa(layer: MHDLSA, x: Tensor) -> Tensor:
    y = layer.proj_in(_norm(layer.norm, x))
    z = layer.spatial(layer.squeeze(y))
    return layer.proj_out(_dynamic_conv(y, z, layer.filters, layer.window_size))


def _dynamic_conv(x: Tensor, z: Tensor, filters: nn.Conv2d, window_size: int) -> Tensor:
    """The dynamic depth-wise convolution of x [B, C, H, W] by filters [B, G * K * K, H, W] made from z [B, D, H, W].

    A row of the window at a time: its K filter values a pixel, times the K copies of x that are shifted along the
    width, K more rows of which are there. It is the filter values that are shifted down to them and their sum that is
    shifted back, since those are C / G times and K times smaller than the copies.
    """
    k, height, channels = window_size, x.shape[2], x.shape[1]
    groups = filters.out_channels // k**2
    # The copies, by a convolution with filters of a single one: [B, C * K, H + K - 1, W].
    one_hot = torch.eye(k, dtype=x.dtype, device=x.device)[:, None, None].repeat(channels, 1, 1, 1)
    copies = F.conv2d(x, one_hot, padding=k // 2, groups=channels).unflatten(1, (-1, channels // groups, k))
    z = F.pad(z, (0, 0, k - 1, k - 1))
    rows = []
    for i, (weight, bias) in enumerate(zip(*(_by_rows(p, k) for p in filters.parameters()), strict=True)):
        taps = F.conv2d(z[:, :, k - 1 - i : height + 2 * (k - 1) - i], weight, bias).unflatten(1, (groups, 1, k))
        rows.append((taps * copies).sum(3)[..., i : i + height, :])
    out = rows[0]
    for row in rows[1:]:
        out = out + row
    return out.flatten(1, 2)


def _by_rows(parameter: Tensor, k: int) -> tuple[Tensor, ...]:
    """K parts of a weight or bias [G * K * K, ...] of the filters, [G * K, ...] each, by the row of their window."""
    return parameter.unflatten(0, (-1, k, k)).transpose(0, 1).flatten(1, 2).unbind(0)


def _static_local(layer: StaticLocalLayer, x: Tensor) -> Tensor:
    return layer.proj_out(layer.depthwise(layer.proj_in(_norm(layer.norm, x))))


def _gdfn(layer: GDFN, x: Tensor) -> Tensor:
    a, b = layer.depthwise(layer.proj_in(_norm(layer.norm, x))).chunk(2, 1)
    return layer.proj_out(F.gelu(a) * b)


def _base_ffn(layer: BaseFFN, x: Tensor) -> Tensor:
    return layer.reduce(F.gelu(layer.expand(_norm(layer.norm, x))))


def _sparse_gsa(layer: SparseGSA, x: Tensor, windows: "list[_Windows] | None") -> Tensor:
    qkv = layer.depthwise(layer.qkv(_norm(layer.norm, x))).permute(0, 2, 3, 1)
    qkv = qkv.unflatten(3, (3, layer.temperature.shape[0], -1))  # [B, H, W, 3, heads, c]
    if windows is None:
        heads = _laid_out(qkv.permute(3, 0, 4, 1, 2, 5))
        out = _attend(layer, heads.flatten(3, 4).flatten(1, 2)).unflatten(0, heads.shape[1:3])
        out = out.unflatten(2, heads.shape[3:5]).permute(0, 2, 3, 1, 4)
    else:
        rows, columns = windows
        cut = columns.cut(rows.cut(qkv, 1), 3)  # [B, windows down, rows, windows across, columns, 3, heads, c]
        cut = _laid_out(cut.permute(5, 0, 1, 3, 6, 2, 4, 7))
        out = _attend(layer, cut.flatten(5, 6).flatten(1, 4)).unflatten(0, cut.shape[1:5])
        out = _laid_out(out.unflatten(4, cut.shape[5:7]).permute(0, 1, 4, 2, 5, 3, 6))
        out = columns.join(rows.join(out, 1), 2)
    return layer.proj_out(out.flatten(3).permute(0, 3, 1, 2))


def _laid_out(x: Tensor) -> Tensor:
    """Copied, so that merging axes asks nothing about their sizes: export would take the answer for all of them."""
    return x.clone(memory_format=torch.contiguous_format)


def _attend(layer: SparseGSA, qkv: Tensor) -> Tensor:
    """q, k, v [3, windows * heads, pixels, c] -> [windows * heads, pixels, c]."""
    q, k, v = qkv.unbind(0)
    q, k = _float(q), _float(k)
    # torch.bmm and not @, which asks whether there is but one window.
    similarities = torch.bmm(q.transpose(1, 2), k) / (_length(q).transpose(1, 2) * _length(k))
    similarities = similarities.unflatten(0, (-1, len(layer.temperature))) * _float(layer.temperature)
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    return torch.bmm(v, _as(weights, v.dtype).flatten(0, 1).transpose(1, 2))


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)


class _Windows:
    """TLC windows along an axis, as `dlgsanet.ops.windows.window_starts` places them, in numbers that may be symbols.

    Window i starts at ``min(i * step, size - side)``, and no pixel lies in more than two of them. So the average over
    a pixel's windows is that of the first and the last: gathering takes the place of adding up.
    """

    def __init__(self, size, kernel: int, device: torch.device | None = None):
        self.side = torch.sym_min(size, kernel)
        self.count = (size - 1) // self.side + 1
        gaps = torch.sym_max(self.count - 1, 1)
        step = torch.sym_max((size - self.side + gaps - 1) // gaps, 1)
        self.starts = (torch.arange(self.count, device=device) * step).clamp(max=size - self.side)
        pixel = torch.arange(size, device=device)
        last = torch.where(pixel >= size - self.side, self.count - 1, pixel // step)
        first = ((pixel - self.side + step) // step).clamp(min=0, max=self.count - 1)
        self.pixels = (self.starts[:, None] + torch.arange(self.side, device=device)).flatten()
        self.first, self.last = (w * self.side + pixel - self.starts[w] for w in (first, last))

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Axis `dim` becomes two: windows, and pixels in a window."""
        return x.index_select(dim, self.pixels).unflatten(dim, (self.count, self.side))

    def join(self, x: Tensor, dim: int) -> Tensor:
        """Axes `dim` (windows) and ``dim + 1`` (their pixels) become one again, averages where windows overlap."""
        x = x.flatten(dim, dim + 1)
        return (x.index_select(dim, self.first) + x.index_select(dim, self.last)) / 2


_LOCAL_LAYERS: dict[type, Callable[..., Tensor]] = {
    MHDLSA: _mhdlsa,
    StaticLocalLayer: _static_local,
    GDFN: _gdfn,
    BaseFFN: _base_ffn,
}
