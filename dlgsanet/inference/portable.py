"""The network in plain tensor operations on images of any size, for programs that know nothing of this project.

`dlgsanet.archs` leaves whole layers to the backends of `dlgsanet.ops`: faster, but a custom operator in a graph, and
TLC windows in Python numbers. Here the dynamic convolution is a sum of shifted products, and the places of the windows
are computed inside the graph from the image's size, so that one graph serves every height and width. The parameters
are those of the network; norms and similarities are formed in float32 whatever its precision.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.feed_forward import GDFN, BaseFFN
from dlgsanet.archs.mhdlsa import MHDLSA, StaticLocalLayer
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.ops.reference import LAYER_NORM_EPS, select_similarities


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
        shallow = network.embed(image.to(network.shallow.weight.dtype))
        x = _norm(network.norm_before, shallow)
        for group in network.groups:
            y = x
            for block in group.get_submodule("blocks").children():
                for layer in block.children():
                    y = y + _LAYERS[type(layer)](layer, y)
            x = x + group.get_submodule("conv")(y)
        x = shallow + network.conv(_norm(network.norm_after, x))
        return network.restore(x).float()


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(norm, LayerNorm):
        return x
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x.float().movedim(1, -1), weight.shape, weight, bias, LAYER_NORM_EPS).movedim(-1, 1).to(x.dtype)


def _mhdlsa(layer: MHDLSA, x: Tensor) -> Tensor:
    y = layer.proj_in(_norm(layer.norm, x))
    filters = layer.filters(layer.spatial(layer.squeeze(y)))
    return layer.proj_out(_filter(y, filters, layer.window_size))


def _filter(x: Tensor, filters: Tensor, window_size: int) -> Tensor:
    """The dynamic depth-wise convolution: x [B, C, H, W], filters [B, G * K * K, H, W]."""
    height, width = x.shape[2:]
    r = window_size // 2
    groups = filters.shape[1] // window_size**2
    padded = F.pad(x, (r, r, r, r)).unflatten(1, (groups, -1))
    taps = filters.unflatten(1, (groups, window_size**2, 1))
    out = torch.zeros_like(x).unflatten(1, (groups, -1))
    for t in range(window_size**2):
        i, j = divmod(t, window_size)
        out = out + taps[:, :, t] * padded[..., i : i + height, j : j + width]
    return out.flatten(1, 2)


def _static_local(layer: StaticLocalLayer, x: Tensor) -> Tensor:
    return layer.proj_out(layer.depthwise(layer.proj_in(_norm(layer.norm, x))))


def _gdfn(layer: GDFN, x: Tensor) -> Tensor:
    a, b = layer.depthwise(layer.proj_in(_norm(layer.norm, x))).chunk(2, 1)
    return layer.proj_out(F.gelu(a) * b)


def _base_ffn(layer: BaseFFN, x: Tensor) -> Tensor:
    return layer.reduce(F.gelu(layer.expand(_norm(layer.norm, x))))


def _sparse_gsa(layer: SparseGSA, x: Tensor) -> Tensor:
    qkv = layer.depthwise(layer.qkv(_norm(layer.norm, x)))
    qkv = qkv.unflatten(1, (3, layer.temperature.shape[0], -1))  # [B, 3, heads, c, H, W]
    if layer.tlc_kernel is None:
        out = _attend(layer, qkv.movedim(1, 0).flatten(4).flatten(1, 2))
        return layer.proj_out(out.unflatten(0, qkv.shape[:1] + qkv.shape[2:3]).flatten(1, 2).unflatten(2, x.shape[2:]))
    rows, columns = _Windows(x.shape[2], layer.tlc_kernel), _Windows(x.shape[3], layer.tlc_kernel)
    cut = columns.cut(rows.cut(qkv, 4), 6)  # [B, 3, heads, c, windows down, rows, windows across, columns]
    windows = _laid_out(cut.permute(1, 0, 4, 6, 2, 3, 5, 7))
    out = _attend(layer, windows.flatten(6).flatten(1, 4)).unflatten(0, windows.shape[1:5])
    out = _laid_out(out.unflatten(5, (rows.side, columns.side)).permute(0, 3, 4, 1, 5, 2, 6)).flatten(1, 2)
    return layer.proj_out(rows.join(columns.join(out, 4), 2))


def _laid_out(x: Tensor) -> Tensor:
    """Copied, so that merging axes asks nothing about their sizes: export would take the answer for all of them."""
    return x.clone(memory_format=torch.contiguous_format)


def _attend(layer: SparseGSA, qkv: Tensor) -> Tensor:
    """q, k, v [3, windows * heads, c, pixels] -> [windows * heads, c, pixels]."""
    q, k, v = qkv.unbind(0)
    q, k = F.normalize(q.float(), dim=2), F.normalize(k.float(), dim=2)
    # torch.bmm and not @, which asks whether there is but one window.
    similarities = torch.bmm(q, k.transpose(1, 2)).unflatten(0, (-1, len(layer.temperature)))
    similarities = similarities * layer.temperature.float()
    weights = select_similarities(similarities, layer.activation, layer.topk_ratio)
    return torch.bmm(weights.to(v.dtype).flatten(0, 1), v)


class _Windows:
    """TLC windows along an axis, as `dlgsanet.ops.tlc.window_starts` places them, in numbers that may be symbols.

    Window i starts at ``min(i * step, size - side)``, and no pixel lies in more than two of them. So the average over
    a pixel's windows is that of the first and the last: gathering takes the place of adding up.
    """

    def __init__(self, size, kernel: int):
        self.size, self.side = size, torch.sym_min(size, kernel)
        self.count = (size - 1) // self.side + 1
        gaps = torch.sym_max(self.count - 1, 1)
        self.step = torch.sym_max((size - self.side + gaps - 1) // gaps, 1)

    def _starts(self, windows: Tensor) -> Tensor:
        return (windows * self.step).clamp(max=self.size - self.side)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Axis `dim` becomes two: windows, and pixels in a window."""
        places = self._starts(torch.arange(self.count, device=x.device))[:, None]
        places = places + torch.arange(self.side, device=x.device)
        return x[(slice(None),) * dim + (places,)]

    def join(self, x: Tensor, dim: int) -> Tensor:
        """Axes `dim` (windows) and ``dim + 1`` (their pixels) become one again, averages where windows overlap."""
        pixel = torch.arange(self.size, device=x.device)
        last = torch.where(pixel >= self.size - self.side, self.count - 1, pixel // self.step)
        first = ((pixel - self.side + self.step) // self.step).clamp(min=0, max=self.count - 1)
        a, b = (x[(slice(None),) * dim + (w, pixel - self._starts(w))] for w in (first, last))
        return (a + b) / 2


_LAYERS: dict[type, Callable[..., Tensor]] = {
    MHDLSA: _mhdlsa,
    StaticLocalLayer: _static_local,
    SparseGSA: _sparse_gsa,
    GDFN: _gdfn,
    BaseFFN: _base_ffn,
}
