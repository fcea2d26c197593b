"""A sheet of training samples to look at: the low-quality crop next to the original, and what was done to it."""

import math
import textwrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlgsanet.data.degraded_paired_dataset import DegradedPairedImageDataset

SIDE = 224  # pixels of a crop on the sheet, about
GAP, LINE, LINES = 8, 13, 3
COLUMNS = 4


def sheet_of_samples(data_set: Any, count: int, epoch: int = 0) -> np.ndarray:
    """The first samples of an epoch: uint8 RGB [H, W, 3].

    Args:
        data_set: a training set of ours, whose samples are `sample(epoch, index)`.
        count: how many samples.
        epoch: which epoch.
    """
    cells = [_cell(data_set, epoch, index) for index in range(min(count, len(data_set)))]
    width, height = cells[0].size
    rows = math.ceil(len(cells) / COLUMNS)
    sheet = Image.new("RGB", (GAP + min(COLUMNS, len(cells)) * (width + GAP), GAP + rows * (height + GAP)), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return np.asarray(sheet)


def _cell(data_set: Any, epoch: int, index: int) -> Image.Image:
    sample = data_set.sample(epoch, index)
    gt = sample["gt"].shape[-1]
    side = gt * max(1, round(SIDE / gt))
    cell = Image.new("RGB", (2 * side, side + LINES * LINE + 2), "white")
    for column, part in enumerate(("lq", "gt")):
        mean, std = data_set.normalisation or (0, 1)
        levels = (sample[part].numpy() * std + mean).clip(0, 1) * 255
        pixels = levels.round().astype(np.uint8).transpose(1, 2, 0)
        image = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2))
        cell.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, 0))
    what = data_set.degradation(epoch, index)[0] if isinstance(data_set, DegradedPairedImageDataset) else None
    font = ImageFont.load_default(LINE - 2)
    lines = textwrap.wrap(f"{index}: {what or 'as it is in dataroot_lq'}", 2 * side // 6)
    ImageDraw.Draw(cell).multiline_text((0, side + 1), "\n".join(lines[:LINES]), "black", font, spacing=1)
    return cell
