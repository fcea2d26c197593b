"""The network in plain tensor operations on images of any size, for programs that do not have this project.

`forward` of a layer uses the backends of `dlgsanet.ops`. It is faster, but it puts a custom operator into a graph, and
the positions of TLC windows are Python numbers. `portable` of a layer uses plain operations only. The graph computes
the positions of windows from the size of the image, so one graph works for every height and width. There are few
operations and symbols, because the time of an export grows with both. The parameters are those of the network. Norms
and similarities are computed in float32 in every precision.
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
        network: in evaluation mode. If it is in float16, norms and similarities are still computed in float32.
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
