"""The network in plain tensor operations on images of any size, for programs that do not have this project.

`forward` of the layers goes to the backends of `dlgsanet.ops`: it is faster, but leaves a custom operator in a graph
and takes TLC windows as Python numbers. Each layer's `portable` uses plain operations alone, and computes the places of
windows inside the graph from the image's size: one graph serves every height and width. The time of an export grows
with operations and symbols, so there are few of both. The parameters are those of the network; norms and similarities
are computed in float32 whatever its precision.
"""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.sparse_gsa import SparseGSA, tlc_window
from dlgsanet.ops.windows import TracedWindows


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
        height, width = image.shape[2:]
        side, device = tlc_window(network), image.device
        windows = (TracedWindows(height, side, device), TracedWindows(width, side, device)) if side else None
        shallow = network.embed(image.to(network.shallow.weight.dtype))
        x = _normalise(network.norm_before, shallow)
        for group in network.groups:
            y = x
            for block in group.get_submodule("blocks").children():
                for layer in block.children():
                    portable = cast("Callable[..., Tensor]", layer.portable)
                    y = portable(y, windows) if isinstance(layer, SparseGSA) else portable(y)
            x = x + group.get_submodule("conv")(y)
        x = shallow + network.conv(_normalise(network.norm_after, x))
        return network.restore(x).float()


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.portable(x) if isinstance(norm, LayerNorm) else x
