"""Sparse global self-attention (DLGSANet, section 3.3) and its dense form, MDTA (Restormer, section 3.1)."""

import torch
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.norm import LayerNorm, as_dtype
from dlgsanet.archs.parts import has_plain_parts
from dlgsanet.ops.windows import TracedWindows

ACTIVATIONS = ("relu", "gelu", "sigmoid", "softmax", "topk")


class SparseGSA(nn.Module):
    """Attention between the channels of each head, over all pixels; pre-norm, residual.

    Args:
        dim: channels C.
        heads: attention heads; C is a multiple of it.
        activation: turns similarities into weights. `relu`, as in the paper, uses only positive similarities. `topk`
            keeps the ``max(1, round(topk_ratio * c))`` largest of the c similarities in each row and applies a softmax
            to them; ties are broken as in `torch.topk`. `softmax` is MDTA.
        topk_ratio: the share that `topk` keeps, in (0, 1].
        tlc_kernel: side in pixels of the windows of test-time local conversion, used in evaluation; None: no windows.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    halo = None  # a row of the result depends on distant rows
    biased = frozenset({"norm"})  # parts

    def __init__(
        self,
        dim: int,
        heads: int = 6,
        activation: str = "relu",
        topk_ratio: float = 0.5,
        tlc_kernel: int | None = None,
    ):
        super().__init__()
        self.activation = activation
        self.topk_ratio = topk_ratio
        self.tlc_kernel = tlc_kernel
        self.norm = LayerNorm(dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.depthwise = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=False)

    def record(self) -> ops.ChannelAttention:
        """The weights and settings, for the functions in `dlgsanet.ops`; with windows only in evaluation."""
        return ops.ChannelAttention(
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            qkv_weight=self.qkv.weight,
            depthwise=self.depthwise.weight,
            temperature=self.temperature,
            proj_out=self.proj_out.weight,
            activation=self.activation,
            topk_ratio=self.topk_ratio,
            window=None if self.training else self.tlc_kernel,
        )

    def forward(self, x: Tensor) -> Tensor:
        if has_plain_parts(self):
            return ops.apply(self.record(), x)
        side, (height, width) = self.tlc_kernel, x.shape[2:]
        windows = None
        if side and not self.training:
            windows = TracedWindows(height, side, x.device), TracedWindows(width, side, x.device)
        return self._by_parts(x, self.norm(x), windows)

    def portable(self, x: Tensor, windows: tuple[TracedWindows, TracedWindows] | None) -> Tensor:
        """`forward` in plain operations, for export; windows: (down, across), or None for the whole image."""
        return self._by_parts(x, self.norm.portable(x), windows)

    def _by_parts(self, x: Tensor, normed: Tensor, windows: tuple[TracedWindows, TracedWindows] | None) -> Tensor:
        """`forward` by calls of its parts; normed: x after the norm, of its shape."""
        qkv = self.depthwise(self.qkv(normed)).permute(0, 2, 3, 1)
        qkv = qkv.unflatten(3, (3, self.temperature.shape[0], -1))  # [B, H, W, 3, heads, c]
        if windows is None:
            heads = _laid_out(qkv.permute(3, 0, 4, 1, 2, 5))
            out = self._attend(heads.flatten(3, 4).flatten(1, 2)).unflatten(0, heads.shape[1:3])
            out = out.unflatten(2, heads.shape[3:5]).permute(0, 2, 3, 1, 4)
        else:
            rows, columns = windows
            cut = columns.cut(rows.cut(qkv, 1), 3)  # [B, windows down, rows, windows across, columns, 3, heads, c]
            cut = _laid_out(cut.permute(5, 0, 1, 3, 6, 2, 4, 7))
            out = self._attend(cut.flatten(5, 6).flatten(1, 4)).unflatten(0, cut.shape[1:5])
            out = _laid_out(out.unflatten(4, cut.shape[5:7]).permute(0, 1, 4, 2, 5, 3, 6))
            out = columns.join(rows.join(out, 1), 2)
        return x + self.proj_out(out.flatten(3).permute(0, 3, 1, 2))

    def _attend(self, qkv: Tensor) -> Tensor:
        """q, k, v [3, windows * heads, pixels, c] -> [windows * heads, pixels, c]."""
        q, k, v = qkv.unbind(0)
        q, k = as_dtype(q, torch.float32), as_dtype(k, torch.float32)
        # torch.bmm, because @ would check whether there is only one window.
        similarities = torch.bmm(q.transpose(1, 2), k) / (_length(q).transpose(1, 2) * _length(k))
        temperature = as_dtype(self.temperature, torch.float32)
        similarities = similarities.unflatten(0, (-1, len(temperature))) * temperature
        weights = ops.select_similarities(similarities, self.activation, self.topk_ratio)
        return torch.bmm(v, as_dtype(weights, v.dtype).flatten(0, 1).transpose(1, 2))


def _laid_out(x: Tensor) -> Tensor:
    """A contiguous copy. Merging its axes needs no check of sizes, which export would fix for all sizes."""
    return x.clone(memory_format=torch.contiguous_format)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)


def tlc_window(network: nn.Module) -> int | None:
    """Side of the TLC windows of a network in pixels; None: its attention covers the whole image.

    A network without SparseGSA has no windows and can be divided anywhere. It gets the side of the published networks.
    """
    windows = [module.tlc_kernel for module in network.modules() if isinstance(module, SparseGSA)]
    return windows[0] if windows else 96
