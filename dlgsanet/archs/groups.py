"""The groups of DLGSANet and their blocks."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from dlgsanet.archs.convolution import Conv3x3
from dlgsanet.archs.parts import computes_one_of, is_plain_sequence
from dlgsanet.ops.transforms import is_traced


class HDTB(nn.Sequential):
    """Hybrid dynamic-Transformer block: a local layer, then a global one, each followed by its feed-forward network.

    `local` and `global_` are pairs (attention, feed-forward network). Ablations leave one of them out.

    Shape: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, local: tuple[nn.Module, nn.Module] | None, global_: tuple[nn.Module, nn.Module] | None):
        super().__init__()
        if local:
            self.mhdlsa, self.mhdlsa_ffn = local
        if global_:
            self.sparse_gsa, self.sparse_gsa_ffn = global_


class RHDTG(nn.Module):
    """Residual hybrid dynamic-Transformer group: blocks and a 3x3 convolution within a residual connection.

    Shape: [B, dim, H, W] -> [B, dim, H, W].
    """

    def __init__(self, dim: int, blocks: list[HDTB]):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = Conv3x3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or is_traced():
            return self.conv(self.blocks(x), to=x)
        # Not by calling `blocks`: a block's input would stay in memory while its last layers run.
        y = x
        for layer in self.layers():
            y = layer(y)
        return self.conv(y, to=x)

    def layers(self) -> list[nn.Module]:
        """The layers of its blocks, in order. A block whose calls are observed, or that was replaced, is one layer."""
        if not is_plain_sequence(self.blocks):
            return [self.blocks]
        return [layer for block in self.blocks for layer in (block.children() if is_plain_sequence(block) else [block])]


def is_group(group: nn.Module) -> TypeGuard[RHDTG]:
    """Whether a module computes what `RHDTG` does: its layers, then its convolution."""
    return computes_one_of((RHDTG.forward,), group)


def layers_of(group: nn.Module) -> list[nn.Module]:
    """The layers of a group; a module in its place is one layer."""
    return group.layers() if is_group(group) else [group]
