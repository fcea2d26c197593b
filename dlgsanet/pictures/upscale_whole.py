"""Upscale a whole image, with local layers in strips of rows, so that only a few feature maps exist at a time.

The output of a local layer at a row depends on a few rows around it, so the layer runs strip by strip, in place. Global
layers run over the whole image, on backends that bound their own memory. The result is that of ``network(image)``.
"""

from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn

from dlgsanet.archs.dlgsanet import DLGSANet

STRIP_PIXELS = 2**17  # per strip: the halo adds little, and hidden features stay below 100 MB for published sizes
MIN_ROWS = 16


def upscale_whole(
    network: DLGSANet, image: Tensor, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, Tensor]]:
    """Upscale an image; yield (first row, [B, in_chans, rows, upscale * W]) from top to bottom, not clipped.

    Args:
        network: in evaluation mode.
        image: [B, in_chans, H, W] in [0, 1].
        tick: called `steps(network)` times, after about equal amounts of work.
    """
    x = _gather(lambda part: network.norm_before(network.embed(part)), image, 1)
    for group in network.groups:
        y = x
        for layer in _layers(group):
            halo = cast("int | None", layer.halo)
            y = layer(y) if halo is None else _gather(layer, y, halo, into=None if y is x else y)
            tick()
        for rows, part in _strips(group.get_submodule("conv"), (y,), 1):
            x[:, :, rows] += part
        del y
        tick()
    scale = network.upscale
    halo = 1 + sum(isinstance(module, nn.Conv2d) for module in network.reconstruct.modules())

    def finish(image: Tensor, x: Tensor) -> Tensor:
        # The shallow features are made again here: cheaper than keeping them all the way.
        return network.restore(network.embed(image) + network.conv(network.norm_after(x)))

    for rows, part in _strips(finish, (image, x), halo, scale):
        yield rows.start * scale, part
    tick()


def steps(network: DLGSANet) -> int:
    """How often `upscale_whole` calls `tick`."""
    return sum(len(_layers(group)) + 1 for group in network.groups) + 1


def rows_of_strip(width: int, halo: int = 0) -> int:
    """Rows of a strip of an image of this width, without the halo."""
    return max(MIN_ROWS, halo, STRIP_PIXELS // width)


def _layers(group: nn.Module) -> list[nn.Module]:
    return [layer for block in group.get_submodule("blocks").children() for layer in block.children()]


def _gather(function: Callable[..., Tensor], x: Tensor, halo: int, into: Tensor | None = None) -> Tensor:
    """``function(x)`` of the same height, strip by strip. `into` may be x itself."""
    written: tuple[slice, Tensor] | None = None
    for rows, part in _strips(function, (x,), halo):
        if into is None:
            into = part.new_empty(*part.shape[:2], *x.shape[2:])
        if written:  # one strip late, since the one after it still reads its last rows
            into[:, :, written[0]] = written[1]
        written = rows, part
    assert into is not None
    assert written is not None
    into[:, :, written[0]] = written[1]
    return into


def _strips(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], halo: int, scale: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the inputs [B, C, H, W], and ``function(*inputs)`` (`scale` times as high) there.

    Zero padding stays right: a strip with its halo ends within the image or at its border.
    """
    height, width = inputs[0].shape[2:]
    rows = rows_of_strip(width, halo)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - halo, 0), min(bottom + halo, height)
        out = function(*(x[:, :, first:last] for x in inputs))
        yield slice(top, bottom), out[:, :, (top - first) * scale : (bottom - first) * scale]
