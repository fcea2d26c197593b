"""Image files: listing them, and reading them with every damage told."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dlgsanet.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


# Photographs of 100 megapixels are no attack; for every process, as filters cannot be set for a thread.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImageError(UserError):
    """One image that cannot be used; work on the others can go on."""


def list_images(folder: Path, option: str) -> list[Path]:
    """The images lying directly in `folder`, by name. Hidden files and other kinds of files are passed over.

    Raises:
        UserError: there is no such folder, or no image in it; the message names `option`.
    """
    if not folder.is_dir():
        raise UserError(f"{option}: there is no folder {folder}")
    images = sorted(p for p in folder.iterdir() if is_image_name(p.name))
    if not images:
        deeper = [p for p in folder.rglob("*") if is_image_name(p.name)]
        hint = f"; there are images in {deeper[0].parent}, name that folder" if deeper else ""
        raise UserError(f"{option}: no images in {folder}{hint}")
    return images


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
    with opened(path, content) as image:
        if has_16_bits(image):
            raise UnreadableImageError(f"{path}: 16 bits a channel; convert it to 8")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data and any(upright.convert("RGBA").getchannel("A").histogram()[:255]):
            raise UnreadableImageError(f"{path}: has transparent pixels; flatten it onto a background")
        return np.array(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))


def read_rgb(path: Path, content: bytes | None = None) -> np.ndarray:
    """As `read_image`, but always uint8 [H, W, 3]: a gray image has three equal channels, as BasicSR reads it."""
    image = read_image(path, content)
    return image if image.ndim == 3 else np.stack([image] * 3, axis=-1)


def has_16_bits(image: ImageFile) -> bool:
    """Over 8 bits a channel? Asked before decoding, in which Pillow drops the low byte."""
    return image.mode[0] in "IF" or any("16" in str(tile[3]) for tile in image.tile)


def upright_size(image: ImageFile) -> tuple[int, int]:
    """(height, width) after the turn that the EXIF entry asks for, from the header alone."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[ImageFile]:
    """The PIL image of a file, header read; all that is wrong with it becomes an `UnreadableImageError`."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UnreadableImageError(f"{path}: there is no such file") from None
    # Pillow raises almost anything on damaged files: OSError, SyntaxError, ValueError, struct.error...
    except Exception as error:
        raise UnreadableImageError(f"{path}: {_reason(path, error)}") from None


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error)


def png_bytes(image: np.ndarray, compress_level: int = 3) -> bytes:
    """uint8 `[H, W]` or RGB `[H, W, 3]` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
