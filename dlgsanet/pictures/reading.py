"""Read pictures: 8 and 16 bits, gray, palette, transparency, EXIF orientation, colour profile.

PNG is decoded by libpng and TIFF by tifffile, which keep 16 bits and every kind of transparency; the rest by Pillow.
"""

import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dlgsanet.errors import UserError, missing_package, reason_of
from dlgsanet.pictures.bounds import LARGEST_FILE, MAX_PIXELS, MAX_SCANS, excess, has_too_many_scans
from dlgsanet.pictures.formats import VIDEOS
from dlgsanet.pictures.jpeg_quality import jpeg_quality
from dlgsanet.pictures.picture import SRGB_CODES, Picture, UnfitPictureError, is_of_gray, is_srgb, rgb_of_inks

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
NOT_RGB = ("CMYK", "LAB", "YCbCr", "HSV")  # modes of Pillow; their colour profiles are not valid for RGB
# MPO is what many phones call JPEG.
READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "HEIF")
_SEVERAL = ("MPO", "HEIF")  # the other frames of these are previews, depth, or the other eye's view

# Chunks of a PNG that say what its colours mean, with their lengths. These come before a profile, it before the others.
_BEFORE_A_PROFILE = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8}
_COLOR_CHUNKS = {**_BEFORE_A_PROFILE, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}

# The box of AVIF and HEIC that says so, with the codes of ITU-T H.273 for primaries and transfer.
_NCLX = re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL)
_UNKNOWN = 2

_JPEG_END = b"\xff\xd9"

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

# Formats that Pillow reads with a plug-in: what their files begin with, and what to do where it is missing.
_BY_PLUGIN = {
    "AVIF": (rb"avi[fs]", "AVIF, which needs Pillow 11.3 or later with AVIF; pip install --upgrade pillow"),
    "HEIF": (rb"(hei[cxs]|hevc|heim|mif1|msf1)", "HEIC, which needs the package pillow-heif; pip install pillow-heif"),
}

# Pattern at the beginning of a file -> what it is, and what to do.
_OTHER_FILES = {
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP": "damaged or cut off",
    rb".{4}ftypcrx ": "a raw photograph (CR3); develop it first",
    rb".{4}ftyp": "a video; extract its frames first",
    rb"\xff\x0a|.{4}JXL ": "JPEG XL; convert it to PNG",
    rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x1f\x8b": "an archive; unpack it first",
    rb"8BPS": "a Photoshop document; save it as PNG",
    rb"%PDF": "a PDF; convert its pages to PNG first",
    rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE)": "SVG or XML, not pixels; convert it to PNG",
    rb"\x76\x2f\x31\x01": "OpenEXR; convert it to PNG",
}

# Photographs of 100 megapixels are normal. Set for the process, because filters cannot be set for a thread.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)  # libpng warns of harmless damage, such as a bad profile


class UnreadableImageError(UserError):
    """One image that cannot be used; work on the others can go on."""


def read_picture(path: Path, content: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a file, turned upright.

    Palettes become RGB. So do CMYK and similar colours, without their profile, which is not valid for RGB. CMYK with a
    profile becomes sRGB by it.

    Args:
        path: the file.
        content: its bytes if they are read already; `path` is only its name then.
        max_pixels: pixels that are accepted.

    Raises:
        UserError: not a picture, damaged, animated, of several pages, a video, too large, or with values that are not
            integers of 1 to 16 bits.
    """
    if path.suffix.lower() in VIDEOS:
        raise UnreadableImageError(
            f"{path}: a video; extract its frames first, for example: mkdir frames; ffmpeg -i VIDEO frames/%06d.png, "
            "and give that folder"
        )
    content = _content(path) if content is None else content
    if not content:
        raise UnreadableImageError(f"{path}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about harmless damage, in words that mean nothing to users
        if content[:4] in TIFF_MAGIC:
            with _named(path):
                from dlgsanet.pictures.reading_tiff import (
                    decode_tiff,
                )  # loads tifffile: slow, and not for other formats

                pixels, profile, orientation = decode_tiff(content, max_pixels)
            return _picture(pixels, profile, None, orientation, "TIFF")
        with opened(path, content) as image:
            _refuse_what_is_not_one_picture(path, image, content, max_pixels)
            exif, orientation = _exif(image)
            pixels = _decoded(image, content)
            profile = image.info.get("icc_profile") if image.mode not in NOT_RGB else None
            picture = _picture(pixels, profile, exif, orientation, image.format)
            kept: tuple[tuple[bytes, bytes], ...] = ()
            if image.format == "PNG":
                chunks = _png_chunks(content)
                kept = tuple(chunk for chunk in chunks if not picture.icc_profile or chunk[0] in _BEFORE_A_PROFILE)
            elif image.format in _BY_PLUGIN and not picture.icc_profile:
                kept = tuple(_cicp(content))
            return replace(picture, jpeg_quality=_quality(image), png_chunks=kept)


def refuse_other_files(path: Path, content: bytes) -> None:
    """Check by its header that a file is a picture; arguments as for `read_picture`.

    Raises:
        UserError: it is not; `read_picture` may find more.
    """
    if content[:4] not in TIFF_MAGIC:  # Pillow does not know all that tifffile does
        with opened(path, content):
            pass


def content_of(file: BinaryIO, name: str) -> bytes:
    """All bytes of a file, pipe or device.

    Raises:
        UnreadableImageError: there are more than any picture has, perhaps without end.
    """
    content = io.BytesIO()
    while part := file.read(2**20):
        content.write(part)
        if content.tell() > LARGEST_FILE:
            raise UnreadableImageError(f"{name}: over {LARGEST_FILE >> 30} GiB; no picture is so large")
    return content.getvalue()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return content_of(file, str(path))
    except FileNotFoundError:
        raise UnreadableImageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from None


def _picture(
    pixels: np.ndarray, profile: object, exif: bytes | None, orientation: int, file_format: str | None
) -> Picture:
    pixels = _UPRIGHT.get(orientation, lambda a: a)(pixels)
    colors = 1 if pixels.shape[2] < 3 else 3
    kept = profile if isinstance(profile, bytes) and profile else None
    return Picture(
        np.ascontiguousarray(pixels[..., :colors]),
        np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] > colors else None,
        None if kept and colors == 3 and is_of_gray(kept) else kept,
        exif,
        file_format,
    )


def _refuse_what_is_not_one_picture(path: Path, image: ImageFile, content: bytes, max_pixels: int) -> None:
    if image.format not in READ_FORMATS:
        raise UnreadableImageError(f"{path}: {image.format} is not read here; convert it to PNG")
    if getattr(image, "is_animated", False) and image.format not in _SEVERAL:
        tool = "magick FILE -coalesce" if image.format == "WEBP" else "ffmpeg -i FILE"  # which reads no animated WebP
        raise UnreadableImageError(
            f"{path}: animated; extract its frames first, for example: mkdir frames; {tool} frames/%06d.png"
        )
    bytes_per_pixel = 1 if image.mode in ("1", "L") else 4
    if problem := excess(image.width, image.height, bytes_per_pixel, len(content), max_pixels):
        raise UnreadableImageError(f"{path}: {problem}")
    if image.format in ("JPEG", "MPO") and has_too_many_scans(content):
        raise UnreadableImageError(f"{path}: over {MAX_SCANS} scans; save it again")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the chunks of a PNG file that say what its colours mean, each kind once, none damaged."""
    place, found = 8, set()
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind in (b"PLTE", b"IDAT"):  # they come before these
            return
        data, end = content[place + 8 : place + 8 + length], place + 8 + length
        whole = content[end : end + 4] == struct.pack(">I", crc32(kind + data))
        if whole and _COLOR_CHUNKS.get(kind) == length and kind not in found:
            found.add(kind)
            yield kind, data
        place += length + 12


def _cicp(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunk cICP of a PNG for the colours of an AVIF or HEIC file, where they are not sRGB's.

    A file with boxes that differ has another picture too, such as the HDR rendition of a phone's photograph.
    """
    found = {(match[1][0], match[2][0]) for match in _NCLX.finditer(content)}
    if len(found) == 1:
        codes = [fit[0] if code == _UNKNOWN else code for code, fit in zip(found.pop(), SRGB_CODES, strict=True)]
        if not is_srgb(codes):
            yield b"cICP", bytes([*codes, 0, 1])  # decoded: RGB of the full range


def _quality(image: ImageFile) -> int | None:
    tables = getattr(image, "quantization", None)  # JPEG and MPO have them
    return jpeg_quality(tables[min(tables)]) if tables else None


def _exif(image: ImageFile) -> tuple[bytes | None, int]:
    """EXIF entries of the upright picture, without its size, and the orientation as it was.

    What cannot be read is left out.
    """
    kept, orientation = None, 1
    # Damaged entries must not stop the work, and Pillow raises almost any exception for them.
    with suppress(Exception):
        entries = image.getexif()
        orientation = entries.get(ExifTags.Base.Orientation, 1)
        entries[ExifTags.Base.Orientation] = 1
        for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength):
            entries.pop(tag, None)
        if ExifTags.IFD.Exif in entries:
            for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):
                entries.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        kept = entries.tobytes() if "exif" in image.info else None
    return kept, orientation


def _decoded(image: ImageFile, content: bytes) -> np.ndarray:
    """[H, W, C], C in 1 to 4, uint8 or uint16."""
    if image.format == "PNG":
        return _png(content)
    if image.format == "PPM" and (most := _largest_value(image)) > 255:
        return _deep_pnm(image, content, most)
    try:
        return pixels_of(image)
    except OSError:
        pixels = _without_end(content) if image.format == "JPEG" else None
        if pixels is None:
            raise
        return pixels


def _without_end(content: bytes) -> np.ndarray | None:
    """Pixels of a JPEG file that lacks only its end marker; None: it lacks more, since they depend on what follows."""

    def followed_by(more: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content.rstrip(b"\xff") + more + _JPEG_END)) as image:
            return pixels_of(image)

    pixels = followed_by(b"")
    return pixels if np.array_equal(pixels, followed_by(bytes(range(1, 129)))) else None


def _png(content: bytes) -> np.ndarray:
    import imagecodecs

    try:
        pixels = imagecodecs.png_decode(content)
    except imagecodecs.PngError as error:
        raise ValueError("the file ends too early" if "too small" in str(error) else str(error)) from None
    return pixels.reshape(*pixels.shape[:2], -1)


def pixels_of(image: Image.Image) -> np.ndarray:
    """[H, W, C] of a PIL image as it is: uint8, C in 1 to 4, or uint16 gray. CMYK becomes sRGB.

    Raises:
        UnfitPictureError: 32 bits per channel.
    """
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if image.mode in ("I", "F"):
        raise UnfitPictureError("32 bits per channel; convert it to 16 or 8")
    if image.mode == "CMYK" and (rgb := rgb_of_inks(np.asarray(image), image.info.get("icc_profile"))) is not None:
        return rgb
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if gray else "RGBA") if image.has_transparency_data else ("L" if gray else "RGB")
    pixels = np.array(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _largest_value(image: ImageFile) -> int:
    """The maxval of a PGM or PPM file, from what Pillow hands to its decoder."""
    arguments = image.tile[0][3]
    return arguments[1] if isinstance(arguments, tuple) else 65535 if arguments == "I;16B" else 255


def _deep_pnm(image: ImageFile, content: bytes, most: int) -> np.ndarray:
    """uint16 of a PGM or PPM file, of which Pillow keeps 8 bits."""
    decoder, _, offset, _ = image.tile[0]
    shape = (image.height, image.width, 1 if image.mode in ("I", "I;16", "L") else 3)
    count = int(np.prod(shape))
    if decoder == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", content[offset:]).split()
        values = np.array(words[:count], np.uint32)
    else:
        values = np.frombuffer(content[offset : offset + 2 * count], ">u2").astype(np.uint32)
    if values.size < count:
        raise UnfitPictureError("the file is cut off")
    if values.max() > most:
        raise UnfitPictureError(f"damaged; it has values above its maxval {most}")
    return ((values * 65535 + most // 2) // most).astype(np.uint16).reshape(shape)


def upright_size(image: ImageFile) -> tuple[int, int]:
    """(height, width) after the turn that the EXIF entry asks for, from the header alone."""
    entries, width, height = image.getexif(), image.width, image.height
    if image.format == "TIFF":  # Pillow has turned its size already, or not: that depends on the version
        width, height = entries[ExifTags.Base.ImageWidth], entries[ExifTags.Base.ImageLength]
    turned = entries.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[ImageFile]:
    """The PIL image of a file, header read; every fault becomes an `UnreadableImageError`."""
    with _named(path, content):
        _register_heif(content[:12] if content is not None else _beginning(path))
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(256)


def _register_heif(beginning: bytes) -> None:
    """Have Pillow read HEIC, if this is such a file and the package for it is installed."""
    if b"ftyp" in beginning and "HEIF" not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return
        register_heif_opener()


@contextmanager
def _named(path: Path, content: bytes | None = None) -> Iterator[None]:
    """Turn any exception of a decoder into an error that names the file and the fault."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UnreadableImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        with _named(path):
            beginning = _beginning(path) if content is None else content[:256]
        raise UnreadableImageError(f"{path}: {_what_it_is(beginning)}") from None
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    except Image.DecompressionBombError:  # twice the limit of `excess`; Pillow's text calls it an attack
        problem = f"too many pixels; at most {MAX_PIXELS / 1e6:.0f} megapixels are read: cut it into parts"
        raise UnreadableImageError(f"{path}: {problem}") from None
    # Decoders raise almost anything on damaged files: OSError, SyntaxError, ValueError, struct.error...
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = os.strerror(error.errno)
        else:
            reason = reason_of(error)
            if not isinstance(error, UnfitPictureError):  # its text is about the decoder's own code
                reason = f"damaged or cut off ({reason})"
        raise UnreadableImageError(f"{path}: {reason}") from None


def _what_it_is(beginning: bytes) -> str:
    """What a file is that Pillow does not know."""
    if not beginning:
        return "the file is empty"
    for name, (brands, remedy) in _BY_PLUGIN.items():
        if re.match(rb".{4}ftyp" + brands, beginning, re.DOTALL):
            return f"damaged {name}" if name in Image.OPEN else remedy
    for pattern, meaning in _OTHER_FILES.items():
        if re.match(pattern, beginning, re.DOTALL):
            return meaning
    return "not an image"
