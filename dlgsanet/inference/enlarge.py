"""Enlarging the pixels of one picture: whole and exact, or in tiles, whichever memory allows."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.device import is_out_of_memory
from dlgsanet.errors import UserError
from dlgsanet.inference.exact import enlarge_in_strips, steps
from dlgsanet.inference.plan import attempts, tiles_of
from dlgsanet.pictures.picture import MOST

Progress = Callable[[float], None]


def enlarge(
    network: DLGSANet,
    pixels: np.ndarray,
    tile: str | int = "auto",
    self_ensemble: bool = False,
    progress: Progress = lambda share: None,
) -> np.ndarray:
    """Enlarge pixels by the network's scale.

    Args:
        network: in evaluation mode; its device and dtype are where and how it computes.
        pixels: [H, W, C], uint8, uint16, or floating point in [0, 1]. C is 3 or 1; gray pixels go through an RGB
            network as three equal channels whose mean is taken, RGB pixels through a gray one channel by channel.
        tile: ``exact``: the whole image at once. A number: tiles that keep about so many pixels a side. ``auto``:
            exact if that fits into free memory, else the largest tiles that do, smaller ones if memory runs out.
        self_ensemble: average over the 8 flips and quarter turns: 8 times the work, slightly better.
        progress: told the share of the work done since it was told before (less than nothing if memory ran out).

    Returns:
        [upscale * H, upscale * W, C] of the same type; floating point is clipped to [0, 1].

    Raises:
        UserError: memory ran out and no smaller tile is left or allowed; channels that the network does not take;
            values that overflow in the network's precision.
    """
    if not self_ensemble:
        return _enlarge(network, pixels, tile, pixels.dtype, progress)
    height, width, channels = pixels.shape
    total = np.zeros((height * network.upscale, width * network.upscale, channels), np.float32)
    for turns in range(4):
        for mirror in (1, -1):
            seen = np.rot90(pixels[:, ::mirror], turns)
            out = _enlarge(network, seen, tile, np.dtype(np.float32), lambda share: progress(share / 8))
            total += np.rot90(out, -turns)[:, ::mirror]
    return _quantised(total / 8, pixels.dtype)


def _enlarge(network: DLGSANet, pixels: np.ndarray, tile: str | int, dtype: np.dtype, progress: Progress) -> np.ndarray:
    height, width, channels = pixels.shape
    out = np.empty((height * network.upscale, width * network.upscale, channels), dtype)
    for side in attempts(network, height, width, tile):
        done = _Done(progress)
        try:
            with torch.inference_mode():
                for rows, columns, part in _parts(network, pixels, side, done.add):
                    out[rows, columns] = _quantised(part, dtype)
            return out
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        done.take_back()
        torch.cuda.empty_cache()
    hint = "use --tile auto" if tile == "exact" else "free some, or use a smaller --tile"
    raise UserError(f"out of memory for {width}x{height} pixels with --tile {tile}; {hint}")


class _Done:
    """What one attempt has told of its progress, so that it can be taken back."""

    def __init__(self, progress: Progress):
        self.progress, self.share = progress, 0.0

    def add(self, share: float) -> None:
        self.share += share
        self.progress(share)

    def take_back(self) -> None:
        self.progress(-self.share)


def _parts(
    network: DLGSANet, pixels: np.ndarray, side: int | None, progress: Progress
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and float32 values [rows, columns, C] of the result, until all of it was there."""
    height, width, channels = pixels.shape
    scale = network.upscale
    down, across = tiles_of(network, height, width, side)
    area = sum(r.last - r.first for r in down) * sum(c.last - c.first for c in across)
    for r in down:
        for c in across:
            x = _to_tensor(network, pixels[r.first : r.last, c.first : c.last])
            tick = partial(progress, (r.last - r.first) * (c.last - c.first) / area / steps(network))
            columns = slice(c.start * scale, c.stop * scale)
            kept = r.kept(scale)
            for top, part in enlarge_in_strips(network, x, tick):
                first, last = max(top, kept.start), min(top + part.shape[2], kept.stop)
                if first < last:
                    rows = slice(r.first * scale + first, r.first * scale + last)
                    part = part[:, :, first - top : last - top, c.kept(scale)]
                    yield rows, columns, _to_array(part, channels)


def _to_tensor(network: DLGSANet, pixels: np.ndarray) -> Tensor:
    """[H, W, C] as [B, in_chans, H, W] in [0, 1] on the network's device."""
    weight = network.shallow.weight
    in_chans, channels = weight.shape[1], pixels.shape[2]
    if {in_chans, channels} - {1, 3}:
        raise UserError(f"a picture of {channels} channels and a network for {in_chans}; only 1 and 3 fit each other")
    x = torch.from_numpy(pixels.astype(np.float32) / MOST.get(pixels.dtype, 1)).permute(2, 0, 1)
    x = x[:, None] if in_chans == 1 else x[None].expand(1, 3, -1, -1)
    return x.to(weight.device, weight.dtype).contiguous()


def _to_array(part: Tensor, channels: int) -> np.ndarray:
    """[B, in_chans, H, W] as float32 [H, W, C]: `_to_tensor` the other way round."""
    part = part.float().flatten(0, 1)
    if len(part) > channels:
        part = part.mean(0, keepdim=True)
    return part.permute(1, 2, 0).cpu().numpy()


def _quantised(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError("values overflowed in this precision; use --precision bf16 or fp32")
    values = values.clip(0, 1)
    return (values * MOST[dtype] + 0.5).astype(dtype) if dtype in MOST else values.astype(dtype)
