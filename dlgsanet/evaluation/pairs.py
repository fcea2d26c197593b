"""Test sets: pairs of a low-resolution image and its original, checked before any work begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlgsanet.data.images import UnreadableImageError, list_images, opened, read_image, upright_size
from dlgsanet.errors import UserError


@dataclass(frozen=True)
class Pair:
    """An original and its LR image; `name` is the original's without extension."""

    name: str
    lr: Path
    hr: Path


def list_pairs(hr_folder: Path, lr_folder: Path, template: str, option: str) -> list[Pair]:
    """The pairs of two folders, in the order of their names.

    Args:
        template: BasicSR's `filename_tmpl`: `'{}x4'` pairs `HR/0001.png` with `LR/0001x4.*`.
        option: what to call the data set in errors.

    Raises:
        UserError: a folder is missing or empty, or originals have no LR image (all of them named).
    """
    hr_images = list_images(hr_folder, f"{option}: dataroot_gt")
    lr_images = {path.stem: path for path in list_images(lr_folder, f"{option}: dataroot_lq")}
    missing = [hr.name for hr in hr_images if template.format(hr.stem) not in lr_images]
    if missing:
        example = template.format(Path(missing[0]).stem)
        raise UserError(
            f"{option}: no LR image in {lr_folder} (filename_tmpl {template!r}, for example {example}.png)"
            f" for {', '.join(missing)}"
        )
    return [Pair(hr.stem, lr_images[template.format(hr.stem)], hr) for hr in hr_images]


def pairs_of(options: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a test set of an option file (completed: it has a `name`).

    Raises:
        UserError: see `list_pairs`.
    """
    option = f"data set {options['name']}"
    if options.get("io_backend", {}).get("type", "disk") != "disk":
        raise UserError(f"{option}: test images are read from folders; set io_backend: type: disk")
    if "dataroot_gt" not in options:
        raise UserError(f"{option}: has no originals to compare with (dataroot_gt); see `dlgsanet upscale`")
    if unmet := [key for key in ("meta_info_file", "mean", "std", "color") if options.get(key) is not None]:
        raise UserError(f"{option}: {', '.join(unmet)}: not for testing; images are tested as they are, in RGB")
    hr_folder, lr_folder = Path(options["dataroot_gt"]), Path(options["dataroot_lq"])
    return list_pairs(hr_folder, lr_folder, options.get("filename_tmpl", "{}"), option)


def check_pair(pair: Pair, scale: int) -> tuple[int, int]:
    """(height, width) of the LR image, from the headers alone.

    Raises:
        UnreadableImageError: a header cannot be read, or the original is not `scale` times as large: as BasicSR, less
            than `scale` more rows or columns are allowed (they are cropped).
    """
    with opened(pair.lr) as lr, opened(pair.hr) as hr:
        height, width = upright_size(lr)
        hr_height, hr_width = upright_size(hr)
    if (hr_height // scale, hr_width // scale) != (height, width):
        raise UnreadableImageError(
            f"{pair.lr}: {width}x{height} pixels are not 1/{scale} of {hr_width}x{hr_height} of {pair.hr}"
        )
    return height, width


def read_pair(pair: Pair, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """LR [H, W, 3] and original [scale * H, scale * W, 3], uint8 RGB; gray images are read as three equal channels.

    Raises:
        UnreadableImageError: an image cannot be read.
    """
    lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
    return lr, hr[: len(lr) * scale, : lr.shape[1] * scale]


def read_rgb(path: Path) -> np.ndarray:
    """An image as BasicSR reads it: uint8 [H, W, 3], a gray one as three equal channels.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    image = read_image(path)
    return image if image.ndim == 3 else np.stack([image] * 3, axis=-1)
