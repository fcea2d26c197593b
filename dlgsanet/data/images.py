"""Image files: list them, and read them for training and scores."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import UnreadableImageError, read_picture

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def list_images(folder: Path, option: str) -> list[Path]:
    """The images directly in `folder`, sorted by name. Hidden files, pipes and other kinds of files are skipped.

    Raises:
        UserError: there is no such folder, or no image in it; the message names `option`.
    """
    if not folder.is_dir():
        raise UserError(f"{option}: there is no folder {folder}")
    with os.scandir(folder) as entries:  # they know most kinds of files without a question to the system
        images = sorted(folder / e.name for e in entries if is_image_name(e.name) and not _is_endless(e))
    if not images:
        deeper = [p for p in folder.rglob("*") if is_image_name(p.name)]
        hint = f"; there are images in {deeper[0].parent}, name that folder" if deeper else ""
        raise UserError(f"{option}: no images in {folder}{hint}")
    return images


def _is_endless(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe or a device, which may be read forever."""
    return not (entry.is_file() or entry.is_dir()) and os.path.exists(entry.path)


def is_image_name(name: str) -> bool:
    """Whether a file of this name should hold an image: by its extension, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def read_image(path: Path, content: bytes | None = None) -> np.ndarray:
    """An 8-bit image: uint8 `[H, W]` if gray, else RGB `[H, W, 3]`; palettes expanded, opaque alpha dropped.

    A photograph is turned upright as its EXIF entry says. `content` gives the file's bytes when they are
    read already; then `path` only names them.

    Raises:
        UnreadableImageError: damaged, not an image, 16 bits a channel, or with transparent pixels.
    """
    picture = read_picture(path, content)
    if picture.color.dtype != np.uint8:
        raise UnreadableImageError(f"{path}: 16 bits per channel; convert it to 8")
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise UnreadableImageError(f"{path}: has transparent pixels; flatten it onto a background")
    return picture.color[..., 0] if picture.color.shape[2] == 1 else picture.color


def read_rgb(path: Path, content: bytes | None = None) -> np.ndarray:
    """As `read_image`, but always uint8 [H, W, 3]: a gray image has three equal channels, as BasicSR reads it."""
    return as_rgb(read_image(path, content))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [H, W, 3]: a gray image gets three equal channels."""
    return image if image.ndim == 3 else np.stack([image] * 3, axis=-1)


def luma(image: np.ndarray) -> np.ndarray:
    """The Y channel float32 [1, h, w] of RGB [3, h, w] in [0, 1], as BasicSR's `bgr2ycbcr` computes it (BT.601)."""
    y = np.dot(image[::-1].transpose(1, 2, 0), [24.966, 128.553, 65.481]) + 16.0
    return (y / 255.0).astype(np.float32)[None]


def png_bytes(image: np.ndarray, compress_level: int = 3) -> bytes:
    """uint8 `[H, W]` or RGB `[H, W, 3]` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
