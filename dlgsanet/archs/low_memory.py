"""A network without gradients in as few feature maps as possible: two, and what one layer needs.

A row of a local layer's result depends on a few rows around it. So the layer runs strip by strip, in place, unless its
backend needs little memory anyway. Global layers run over the whole image.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.convolution import Conv3x3
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.groups import is_group, layers_of
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.parts import computes_one_of, has_plain_parts, is_plain_part, record_of
from dlgsanet.archs.replays import can_replay, replay
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.archs.strips import CONVOLUTION_PIXELS, add, strips, write
from dlgsanet.ops.constants import CONVOLVED_ROWS
from dlgsanet.ops.transforms import is_plain

_LAYERS = (MHDLSA.forward, SparseGSA.forward, GDFN.forward)  # they compute their records

LEAST_CHANNELS = 16  # from which on convolutions of strips are equal to those of the whole image, to the last bit


class LowMemory(nn.Module):
    """The base class of `DLGSANet`, which has the parts below."""

    shallow: Conv3x3
    norm_before: nn.Module
    groups: nn.Sequential
    norm_after: nn.Module
    conv: Conv3x3
    reconstruct: nn.Sequential
    upscale: int

    def embed(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def restore(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """The layers of all blocks, in order."""
        return [layer for group in self.groups for layer in layers_of(group)]

    def by_rows(self, image: Tensor, tick: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Tensor]]:
        """`forward` without gradients, in as few feature maps as possible.

        Args:
            image: [B, in_chans, H, W] in [0, 1].
            tick: called `steps()` times, after about equal amounts of work.

        Yields:
            (first row, [B, in_chans, rows, upscale * W]) from top to bottom, not clipped. The values may differ from
            those of `forward` in the last bit.
        """
        around = "circular" in self._padding_modes()
        if around or self.can_replay(image):  # each strip would wrap around
            yield 0, self(image) if around else replay(LowMemory._rows_joined, self, image)
            for _ in range(self.steps()):
                tick()
        else:
            yield from self._restore_by_rows(self._features(image, tick))
            tick()

    def steps(self) -> int:
        """How often `by_rows` calls `tick`."""
        return sum(len(layers_of(group)) + 1 for group in self.groups) + 1

    def can_replay(self, x: Tensor) -> bool:
        """Whether a call with x [B, C, H, W] may be replayed as a CUDA graph (`dlgsanet.archs.replays`)."""
        return can_replay(self, x) and not self._is_watched()

    def can_reuse_memory(self, x: Tensor) -> bool:
        """Whether `in_reused_memory` gives the same bits as the modules called in turn, and nothing observes them."""
        if not (is_plain() and x.is_cpu and x.dtype == torch.float32 and x.dim() == 4 and x.numel()):
            return False
        if torch.is_grad_enabled() and (x.requires_grad or self._requires_grad()):
            return False
        # PyTorch's sums over channels in a normalisation, and over few channels in a convolution, may differ in strips.
        if not isinstance(self.norm_before, nn.Identity) or len(self.shallow.weight) < LEAST_CHANNELS:
            return False
        plain = all(map(is_group, self.groups)) and all(
            computes_one_of(_LAYERS, layer) and has_plain_parts(layer) for layer in self.layers()
        )
        plain = plain and not self._is_watched() and self._padding_modes() == {"zeros"}
        return plain and all(self._bounds_memory(x).values())

    def in_reused_memory(self, x: Tensor) -> Tensor:
        """`forward` for x [B, C, H, W] on a CPU, for which `can_reuse_memory`."""
        features = self._features(x, embed_whole=True)
        if len(self.reconstruct) == 1:  # one convolution, which needs no memory but for the result
            return self.restore(features)
        batch, channels, height, width = x.shape
        out = x.new_empty(batch, channels, height * self.upscale, width * self.upscale)
        for top, part in self._restore_by_rows(features):
            out[:, :, top : top + part.shape[2]] = part
        return out

    def _rows_joined(self, image: Tensor) -> Tensor:
        return torch.cat([part for _, part in self._restore_by_rows(self._features(image))], 2)

    def _features(self, image: Tensor, tick: Callable[[], None] = lambda: None, embed_whole: bool = False) -> Tensor:
        """What `restore` takes. In strips the shallow features need less memory and may differ in the last bit."""
        pixels = CONVOLUTION_PIXELS if image.is_cpu else None

        def shallow(function: Callable[[Tensor], Tensor]) -> Tensor:
            return function(image) if embed_whole else write(function, image, 1, self._features_of(image), pixels)

        with ops.KeptMemory() as memory:
            x = shallow(lambda part: self.norm_before(self.embed(part)))
            bounded = self._bounds_memory(x)
            with memory.deferring() if embed_whole and self._can_defer(x) else nullcontext():
                for group in self.groups:
                    y = x
                    for layer in layers_of(group):
                        halo: int | None = getattr(layer, "halo", None)
                        if halo is None or bounded[type(layer)]:
                            y = layer(y)
                        else:
                            y = write(layer, y, halo, self._features_of(image) if y is x else y)
                        tick()
                    if is_group(group):
                        _add(group.conv, y, x, pixels)
                    else:
                        x = y
                    del y
                    tick()
            # The shallow features are made again here: cheaper than keeping them all the way.
            y = shallow(self.embed)
            normed = not isinstance(self.norm_after, nn.Identity)
            _add(nn.Sequential(self.norm_after, self.conv) if normed else self.conv, x, y, pixels)
            del x
        return y

    def _restore_by_rows(self, features: Tensor) -> Iterator[tuple[int, Tensor]]:
        # A convolution computes rows together. So that all bits are those of the whole image, the rows that the last
        # one needs must have been computed together with the same rows.
        halo = CONVOLVED_ROWS * sum(isinstance(module, Conv3x3) for module in self.reconstruct.modules())
        pixels = CONVOLUTION_PIXELS if features.is_cpu else None
        for rows, part in strips(self.restore, features, halo, self.upscale, pixels):
            yield rows.start * self.upscale, part

    def _features_of(self, image: Tensor) -> Tensor:
        """Memory for the features of an image: [B, dim, H, W]."""
        shape = (len(image), len(self.shallow.weight), *image.shape[2:])
        on_cpu = image.is_cpu and self.shallow.weight.dtype == torch.float32
        return ops.empty(*shape) if on_cpu else self.shallow.weight.new_empty(shape)

    def _bounds_memory(self, x: Tensor) -> dict[type[nn.Module], bool]:
        """Whether the backend of the layers of a class needs little memory but for the result."""
        records = {type(layer): record_of(layer) for layer in self.layers()}
        return {kind: record is not None and ops.bounds_memory(record(), x) for kind, record in records.items()}

    def _can_defer(self, x: Tensor) -> bool:
        """Whether the convolutions of groups, on x, only hand calls to the backend, as layers do: no code uses results.

        The network is one for which `can_reuse_memory`.
        """
        return x.is_contiguous() and all(_adds_in_place(group.get_submodule("conv"), x) for group in self.groups)

    def _requires_grad(self) -> bool:
        """Whether gradients of a parameter are required, or of a tensor that has the place of one."""
        tensors = (t for module in self.modules() for t in (*vars(module).values(), *module.parameters(recurse=False)))
        return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)

    def _is_watched(self) -> bool:
        """Whether calls of submodules are observed by hooks, or a submodule is compiled."""
        parts = (module for module in self.modules() if module is not self)
        return nn.modules.module._has_any_global_hook() or any(
            part._forward_hooks or part._forward_pre_hooks or part._compiled_call_impl for part in parts
        )

    def _padding_modes(self) -> set[str]:
        return {getattr(part, "padding_mode", "zeros") for part in self.modules()}


def _add(convolution: nn.Module, x: Tensor, to: Tensor, pixels: int | None) -> None:
    """Add a convolution of x to another feature map, in place; in strips unless the backend does it in place."""
    if _adds_in_place(convolution, x):
        ops.add_convolution(cast("Conv3x3", convolution).record(), x, to)
    else:
        add(convolution, x, 1, to, pixels)


def _adds_in_place(convolution: nn.Module, x: Tensor) -> bool:
    """Whether the backend adds a convolution of x to another feature map in place."""
    if not isinstance(convolution, Conv3x3):
        return False
    return is_plain_part(convolution) and ops.adds_in_place(convolution.record(), x, x)
