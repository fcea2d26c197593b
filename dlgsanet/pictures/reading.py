"""Reading pictures: 8 and 16 bits, gray, palette, transparency, EXIF orientation, colour profile."""

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from dlgsanet.data.images import UnreadableImageError, has_16_bits, opened
from dlgsanet.pictures.formats import VIDEOS
from dlgsanet.pictures.picture import Picture

NOT_RGB = ("CMYK", "LAB", "YCbCr", "HSV")  # modes of Pillow whose colour profiles mean nothing for RGB
READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM")  # MPO: what many phones call JPEG

# How to turn [H, W, C] upright, for each value of the EXIF entry.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def read_picture(path: Path, content: bytes | None = None) -> Picture:
    """The picture in a file, turned upright.

    Palettes become RGB; CMYK and the like too, without their profile, which says nothing about RGB.

    Args:
        path: the file.
        content: its bytes where they are read already; `path` is only its name then.

    Raises:
        UserError: not a picture, damaged, animated, of several pages, a video, or with 32 bits a channel.
    """
    if path.suffix.lower() in VIDEOS:
        raise UnreadableImageError(
            f"{path}: a video; take it apart first, for example: ffmpeg -i VIDEO frames/%06d.png, and give that folder"
        )
    if content is None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{path}: {error.strerror}") from None
    if not content:
        raise UnreadableImageError(f"{path}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damage that does not matter, in words that say nothing to users
        with opened(path, content) as image:
            return _decoded(path, image, content)


def _decoded(path: Path, image: ImageFile, content: bytes) -> Picture:
    _refuse_what_is_not_one_picture(path, image)
    deep = image.format in ("PNG", "TIFF", "PPM") and has_16_bits(image)
    exif, orientation = _exif(image)
    pixels = _deep_pixels(path, image, content) if deep else pixels_of(image)
    if image.format != "TIFF":  # Pillow and OpenCV turn those themselves
        pixels = _UPRIGHT.get(orientation, lambda a: a)(pixels)
    profile = image.info.get("icc_profile") if image.mode not in NOT_RGB else None
    colors = 1 if pixels.shape[2] < 3 else 3
    return Picture(
        np.ascontiguousarray(pixels[..., :colors]),
        np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] > colors else None,
        profile if isinstance(profile, bytes) and profile else None,
        exif,
        image.format,
    )


def _refuse_what_is_not_one_picture(path: Path, image: ImageFile) -> None:
    if image.format not in READ_FORMATS:
        raise UnreadableImageError(f"{path}: {image.format} is not read here; convert it to PNG")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "TIFF":
        raise UnreadableImageError(f"{path}: has {frames} pages; split it first, for example: tiffsplit FILE")
    if frames > 1 and image.format != "MPO":  # an MPO's other frames are previews or the other eye's view
        raise UnreadableImageError(
            f"{path}: animated, {frames} frames; take it apart first, for example: ffmpeg -i FILE frames/%06d.png"
        )


def _exif(image: ImageFile) -> tuple[bytes | None, int]:
    """EXIF entries of the upright picture, and the orientation as it was. What cannot be read is left out."""
    try:
        entries = image.getexif()
        orientation = entries.get(ExifTags.Base.Orientation, 1)
        if image.format == "TIFF":  # there the entries are the file's own layout: of no use in another file
            return None, orientation
        entries[ExifTags.Base.Orientation] = 1
        return (entries.tobytes() if "exif" in image.info else None), orientation
    # A photograph is worth enlarging whatever became of its entries, and Pillow raises almost anything on damage.
    except Exception:
        return None, 1


def pixels_of(image: Image.Image) -> np.ndarray:
    """[H, W, C] of a PIL image as it is: uint8, C in 1 to 4, or uint16 gray.

    Raises:
        ValueError: 32 bits a channel.
    """
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel; convert it to 16 or 8")
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if gray else "RGBA") if image.has_transparency_data else ("L" if gray else "RGB")
    pixels = np.array(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def _deep_pixels(path: Path, image: ImageFile, content: bytes) -> np.ndarray:
    """uint16 [H, W, C], C 1, 3 or 4. Pillow keeps 8 bits of such colours, OpenCV all 16."""
    import cv2

    image.load()  # Pillow notices damage that OpenCV passes over
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it would say goes to stderr
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or image.mode == "CMYK":
        raise UnreadableImageError(f"{path}: its kind of pixels is not read here; convert it to 16 or 8 bits a channel")
    if pixels.ndim == 2:
        return pixels[..., None]
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
