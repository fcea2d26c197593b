"""Geometric self-ensemble: the mean over the 8 flips and transposes of the input (Timofte et al., CVPR 2016)."""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def self_ensemble(network: Network) -> Network:
    """A network that upscales [B, C, H, W] in all 8 orientations and averages the results in the first orientation."""

    def upscale(x: Tensor) -> Tensor:
        total = None
        for transposed in (False, True):
            for flipped in ((), (2,), (3,), (2, 3)):
                seen = x.flip(flipped)
                y = network((seen.mT if transposed else seen).contiguous()).float()
                y = (y.mT if transposed else y).flip(flipped)
                total = y if total is None else torch.add(total, y)
        assert total is not None
        return total / 8

    return upscale
