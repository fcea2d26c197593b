"""Sparse global self-attention (DLGSANet, section 3.3) and its dense relative, MDTA (Restormer, section 3.1)."""

import torch
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.norm import LayerNorm

ACTIVATIONS = ("relu", "gelu", "sigmoid", "softmax", "topk")


class SparseGSA(nn.Module):
    """Attention between the channels of each head, over all pixels; pre-norm, residual.

    Args:
        dim: channels C.
        heads: attention heads; C is a multiple of it.
        activation: what turns similarities into weights. `relu` is the paper's: only positive similarities take part.
            `topk` keeps the ``max(1, round(topk_ratio * c))`` largest of each row's c similarities and lets them
            through a softmax; ties go as `torch.topk` breaks them. `softmax` is MDTA.
        topk_ratio: share kept by `topk`, in (0, 1].
        tlc_kernel: side in pixels of the windows of test-time local conversion, used in evaluation; None: none.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    halo = None  # a row of the result depends on rows far away

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
        return ops.apply(self.record(), x)


def tlc_window(network: nn.Module) -> int | None:
    """Side of the TLC windows of a network in pixels; None: its attention spans the whole image.

    A network without SparseGSA has no windows and could be cut anywhere; it gets the side of the published networks.
    """
    windows = [module.tlc_kernel for module in network.modules() if isinstance(module, SparseGSA)]
    return windows[0] if windows else 96
