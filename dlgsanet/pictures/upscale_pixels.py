"""Upscale one array of pixels tile by tile. A single tile is the whole image, if memory allows it."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import NOT_FINITE, UserError
from dlgsanet.inference.self_ensemble import self_ensemble as averaged
from dlgsanet.memory import is_out_of_memory, release_cached_memory
from dlgsanet.pictures.picture import MOST
from dlgsanet.pictures.tile_layout import tiles_of
from dlgsanet.pictures.tile_sizes import tile_sizes_to_try, what_to_do

Progress = Callable[[float], None]

NARROW = 8  # pixels; see `upscale_pixels`


def upscale_pixels(
    network: DLGSANet,
    pixels: np.ndarray,
    tile: str | int = "auto",
    self_ensemble: bool = False,
    progress: Progress = lambda share: None,
) -> np.ndarray:
    """Upscale pixels by the network's scale.

    Pictures of fewer than `NARROW` pixels per side are mirrored at their edges first: the zeros that convolutions see
    beyond the edges would change the colours of so few pixels.

    Args:
        network: in evaluation mode; its device and dtype are where and how it computes.
        pixels: [H, W, C], uint8, uint16, or floating point in [0, 1]. C is 3 or 1. Gray pixels go through an RGB
            network as three equal channels, and the mean of its output is taken. RGB pixels go through a gray network
            channel by channel.
        tile: ``exact``: the whole image at once. A number: tiles that keep about so many pixels per side. ``auto``:
            exact if that fits into free memory, else the largest tiles that do; smaller ones if memory runs out.
        self_ensemble: average over the 8 flips and transposes: 8 times the work, slightly better.
        progress: called with the share of the work that is done, from 0 to 1. The share falls when memory ran out and
            smaller tiles are tried. An exception that it raises ends the work.

    Returns:
        [upscale * H, upscale * W, C] of the same type; floating point is clipped to [0, 1].

    Raises:
        UserError: memory ran out and no smaller tile is left or allowed; the network does not take so many channels;
            values overflow in the network's precision.
    """
    down, across = ((max(NARROW - side, 0) + 1) // 2 for side in pixels.shape[:2])
    if down or across:
        mirrored = np.pad(pixels, ((down, down), (across, across), (0, 0)), "symmetric")
        height, width = (side * network.upscale for side in pixels.shape[:2])
        top, left = down * network.upscale, across * network.upscale
        wide = upscale_pixels(network, mirrored, tile, self_ensemble, progress)
        return np.ascontiguousarray(wide[top : top + height, left : left + width])
    if not self_ensemble:
        return _upscale(network, pixels, tile, pixels.dtype, progress)
    passes = count()

    def one_orientation(x: Tensor) -> Tensor:
        number = next(passes)
        array = x[0].permute(1, 2, 0).numpy()
        out = _upscale(network, array, tile, None, lambda share: progress((number + share) / 8))
        return torch.from_numpy(out).permute(2, 0, 1)[None]

    x = torch.from_numpy(_to_float(pixels)).permute(2, 0, 1)[None]
    return _stored(averaged(one_orientation)(x)[0].permute(1, 2, 0).numpy(), pixels.dtype)


def _upscale(
    network: DLGSANet, pixels: np.ndarray, tile: str | int, dtype: np.dtype | None, progress: Progress
) -> np.ndarray:
    """`upscale_pixels` of one orientation. A `dtype` of None: float32, not clipped."""
    height, width, channels = pixels.shape
    out = np.empty((height * network.upscale, width * network.upscale, channels), dtype or np.float32)
    results = 1 if dtype else 3  # a self-ensemble turns each one, and makes a new sum
    for side in tile_sizes_to_try(network, height, width, tile, results * out.nbytes):
        try:
            with torch.inference_mode():
                for rows, columns, part in _parts(network, pixels, side, progress):
                    out[rows, columns] = _finite(part) if dtype is None else _stored(part, dtype)
            return out
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        release_cached_memory(network.shallow.weight.device)
    raise UserError(f"out of memory for {width}x{height} pixels (tile: {tile}); {what_to_do(tile)}")


def _parts(
    network: DLGSANet, pixels: np.ndarray, side: int | None, progress: Progress
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and float32 values [rows, columns, C] of the result, until all of it was there."""
    height, width, channels = pixels.shape
    scale = network.upscale
    down, across = tiles_of(network, height, width, side)
    total = sum(r.last - r.first for r in down) * sum(c.last - c.first for c in across) * network.steps()
    done = 0

    def tick(area: int) -> None:
        nonlocal done
        done += area
        progress(done / total)

    progress(0)
    for r in down:
        for c in across:
            x = _to_tensor(network, pixels[r.first : r.last, c.first : c.last])
            columns = slice(c.start * scale, c.stop * scale)
            kept = r.kept(scale)
            for top, part in network.by_rows(x, partial(tick, (r.last - r.first) * (c.last - c.first))):
                first, last = max(top, kept.start), min(top + part.shape[2], kept.stop)
                if first < last:
                    rows = slice(r.first * scale + first, r.first * scale + last)
                    part = part[:, :, first - top : last - top, c.kept(scale)]
                    yield rows, columns, _to_array(part, channels)


def _to_float(pixels: np.ndarray) -> np.ndarray:
    """The same shape as float32 in [0, 1]."""
    return pixels.astype(np.float32) / MOST.get(pixels.dtype, 1)


def _to_tensor(network: DLGSANet, pixels: np.ndarray) -> Tensor:
    """[H, W, C] as [B, in_chans, H, W] in [0, 1] on the network's device."""
    weight = network.shallow.weight
    in_chans, channels = weight.shape[1], pixels.shape[2]
    if {in_chans, channels} - {1, 3}:
        raise UserError(f"a picture of {channels} channels and a network for {in_chans}; only 1 and 3 fit each other")
    x = torch.from_numpy(_to_float(pixels)).permute(2, 0, 1)
    x = x[:, None] if in_chans == 1 else x[None].expand(1, 3, -1, -1)
    return x.to(weight.device, weight.dtype).contiguous()


def _to_array(part: Tensor, channels: int) -> np.ndarray:
    """[B, in_chans, H, W] as float32 [H, W, C]: the reverse of `_to_tensor`."""
    part = part.float().flatten(0, 1)
    if len(part) > channels:
        part = part.mean(0, keepdim=True)
    return part.permute(1, 2, 0).cpu().numpy()


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(NOT_FINITE)
    return values


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values clipped to [0, 1], and rounded where `dtype` is an integer type."""
    values = _finite(values).clip(0, 1)
    return (values * MOST[dtype] + 0.5).astype(dtype) if dtype in MOST else values.astype(dtype)
