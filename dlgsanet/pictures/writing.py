"""Writing pictures to files: what each format holds, and how."""

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from dlgsanet.pictures.formats import WRITTEN
from dlgsanet.pictures.picture import Picture, is_of_gray

# Pixels a side; JPEG's header could say 65,535, libjpeg writes up to 65,500.
LARGEST_SIDE = {"WEBP": 16383, "JPEG": 65500, "BMP": 2**31 - 1, "TIFF": 2**31 - 1, "PNG": 2**31 - 1}
_OPAQUE = ("JPEG", "BMP")
_DEEP = ("PNG", "TIFF")


def check_format(name: str, extension: str, size: tuple[int, int], picture: Picture) -> None:
    """Check before the work that a format can hold the result.

    Args:
        name: of the output, for messages.
        extension: of the output, such as ``.png``.
        size: (height, width) of the output in pixels.
        picture: what is upscaled.

    Raises:
        UserError: it cannot; the message names a format that can.
    """
    file_format = WRITTEN.get(extension.lower())
    if file_format is None:
        raise UserError(f"{name}: cannot write {extension or 'a file without extension'}; use {', '.join(WRITTEN)}")
    height, width = size
    if max(size) > LARGEST_SIDE[file_format]:
        most = LARGEST_SIDE[file_format]
        raise UserError(f"{name}: {width}x{height} pixels; {file_format} holds {most} a side; use .png (--ext png)")
    if picture.needs_png and file_format != "PNG":
        raise UserError(f"{name}: its colours are not sRGB (cICP), which only PNG keeps; use .png (--ext png)")
    if picture.transparent and file_format in _OPAQUE:
        raise UserError(f"{name}: has transparent pixels, which {file_format} cannot hold; use .png (--ext png)")


def write_picture(picture: Picture, path: Path, quality: int = 95) -> None:
    """Write a picture in the format of the path's extension; arguments as for `encode`.

    Raises:
        UserError: the file cannot be written; nothing is left half-written.
    """
    write_whole(path, encode(picture, path.suffix, quality))


def encode(picture: Picture, extension: str, quality: int = 95) -> bytes:
    """The bytes of a picture (uint8 or uint16) as a file. JPEG, WebP and BMP keep 8 bits a channel.

    Args:
        picture: what to write; `check_format` has accepted it.
        extension: such as ``.png``.
        quality: 1 to 100, for JPEG and WebP.
    """
    file_format = WRITTEN[extension.lower()]
    if picture.color.dtype == np.uint16 and file_format in _DEEP:
        pixels = picture.pixels
        # Most readers know no 16-bit gray with transparency. For RGB a profile for gray would mean nothing.
        if pixels.shape[2] == 2 and not _is_of_gray(picture):
            pixels = pixels[..., [0, 0, 0, 1]]
        return (_deep_png if file_format == "PNG" else _deep_tiff)(pixels, picture)
    picture = picture.in_8_bits()
    pixels = picture.color if file_format in _OPAQUE else picture.pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if file_format == "BMP" or (file_format == "WEBP" and _is_of_gray(picture)):  # no profile; none for gray
        image, picture = _as_srgb(image, picture.icc_profile), replace(picture, icc_profile=None)
    options: dict[str, dict[str, object]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
        "TIFF": {"compression": "tiff_adobe_deflate"},
    }
    kept = {"icc_profile": picture.icc_profile, "exif": picture.exif}
    if file_format == "TIFF":
        del kept["exif"]  # it holds entries about the layout of the file that it came from
    if file_format == "JPEG" and len(picture.exif or b"") > 65000:  # the most that a segment holds
        del kept["exif"]
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options.get(file_format, {}), **{k: v for k, v in kept.items() if v})
    content = buffer.getvalue()
    return _with_chunks(content, picture.png_chunks) if file_format == "PNG" else content


def _is_of_gray(picture: Picture) -> bool:
    """Whether it is a gray picture with a profile for gray."""
    return picture.color.shape[2] == 1 and picture.icc_profile is not None and is_of_gray(picture.icc_profile)


def _as_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of these colours, gray perhaps with transparency, in sRGB; as it is without a profile that fits it."""
    opaque = image.getchannel(0) if image.mode == "LA" else image
    given, srgb = io.BytesIO(profile or b""), ImageCms.createProfile("sRGB")
    try:
        rgb = ImageCms.profileToProfile(opaque, given, srgb, outputMode="RGB")
    except ImageCms.PyCMSError:
        return image
    assert rgb is not None
    if image.mode == "LA":
        rgb.putalpha(image.getchannel(1))
    return rgb


def _deep_png(pixels: np.ndarray, picture: Picture) -> bytes:
    import imagecodecs

    chunks = [*picture.png_chunks]
    if picture.icc_profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile)))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    return _with_chunks(bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels))), chunks)


def _with_chunks(png: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG file with more chunks, each its kind and content, before those of its pixels."""
    after_header = 8 + 25  # the signature, then IHDR, which has a fixed length
    more = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return png[:after_header] + more + png[after_header:]


def _deep_tiff(pixels: np.ndarray, picture: Picture) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels[..., 0] if pixels.shape[2] == 1 else pixels,
        photometric="minisblack" if pixels.shape[2] < 3 else "rgb",
        planarconfig="contig" if pixels.shape[2] > 1 else None,
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="adobe_deflate",
        iccprofile=picture.icc_profile,
        metadata=None,
    )
    return buffer.getvalue()
