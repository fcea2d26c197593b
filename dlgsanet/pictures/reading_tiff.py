"""Decode TIFF: every photometric interpretation, layout and depth is either right or refused by name."""

import io
import logging
import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, SAMPLEFORMAT

from dlgsanet.pictures.bounds import MAX_PIXELS, MAX_SCANS, excess, has_too_many_scans, jpeg_size
from dlgsanet.pictures.picture import UnfitPictureError, rgb_of_inks

_COLORS = {
    PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.SEPARATED: 4,
}  # fmt: skip
_KINDS = {
    SAMPLEFORMAT.INT: "signed integers", SAMPLEFORMAT.IEEEFP: "floating point",
    SAMPLEFORMAT.COMPLEXINT: "complex numbers", SAMPLEFORMAT.COMPLEXIEEEFP: "complex numbers",
}  # fmt: skip
_JPEG = (COMPRESSION.JPEG, COMPRESSION.ALT_JPEG)
# The parts of a picture are compressed as streams that say nothing about their size, or as files that Pillow knows.
_STREAMS = (
    COMPRESSION.NONE, COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4, COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS, COMPRESSION.LZMA, COMPRESSION.ZSTD,
    COMPRESSION.ZSTD_DEPRECATED,
)  # fmt: skip
_FILES: dict[int, str] = {
    COMPRESSION.PNG: "PNG", COMPRESSION.WEBP: "WEBP", COMPRESSION.WEBP_DEPRECATED: "WEBP",
    COMPRESSION.JPEG2000: "JPEG2000",
}  # fmt: skip
BLOCK = 2**20  # values that are converted at a time
_ROUNDED = 32  # pixels that a part may have beyond its place: JPEG codes blocks of up to 32x32
_NUMBERS = ("imagewidth", "imagelength", "imagedepth", "tilewidth", "tilelength", "tiledepth", "rowsperstrip",
            "samplesperpixel", "bitspersample")  # fmt: skip
_INK_SET, _DNG_VERSION, _ORIENTATION, _YCBCR_SUBSAMPLING = 332, 50706, 274, 530
_PREVIEW, _CMYK = 1, 1  # values of the tags NewSubfileType and InkSet
_LEVELS = 30  # more than a pyramid has: each is half as large as the one before

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage is reported by exceptions, once


def decode_tiff(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, bytes | None, int]:
    """The only page of a TIFF file, which may have smaller copies of it too.

    Args:
        content: the file.
        max_pixels: pixels that are accepted.

    Returns:
        Pixels [H, W, C], C 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha), alpha not premultiplied: uint8 for up
        to 8 bits per channel, else uint16; the colour profile; the orientation as EXIF counts it.

    Raises:
        UnfitPictureError: what the file has and this function does not decode.
        Exception: whatever tifffile raises on damaged files.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        extra = _refuse(file, page, len(content), max_pixels)
        orientation = page.tags.valueof(_ORIENTATION, 1)
        profile = page.iccprofile if page.photometric != PHOTOMETRIC.SEPARATED else None
        ycbcr = page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _JPEG
        if ycbcr and not _is_plain_ycbcr(page):
            return _by_libtiff(content, page), profile, 1  # Pillow turns it upright itself
        if page.compression not in _STREAMS:
            _refuse_parts(page, content)
        values = page.asarray(squeeze=False)[:, 0]  # [planes, H, W, samples of a plane]
        values = np.moveaxis(values[..., 0], 0, -1) if len(values) > 1 else values[0]
        convert = _rgb_of_ycbcr if ycbcr else lambda rows: _pixels(page, rows, extra)
        return _by_rows(convert, values), profile, orientation


def _by_rows(convert: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """Convert [H, W, S] some rows at a time: what is needed in between may be 16 times as large as the values."""
    step = max(1, BLOCK // (values.shape[1] * values.shape[2]))
    first = convert(values[:step])
    out = np.empty((len(values), *first.shape[1:]), first.dtype)
    out[:step] = first
    for row in range(step, len(values), step):
        out[row : row + step] = convert(values[row : row + step])
    return out


def _refuse(file: tifffile.TiffFile, page: tifffile.TiffPage, file_bytes: int, max_pixels: int) -> int | None:
    """Raise UnfitPictureError for what is not decoded; return the kind of the extra sample, None: there is none."""
    # tifffile takes the type that the file states; and text times a number is a longer text.
    if not all(isinstance(getattr(page, name), int) for name in _NUMBERS):
        raise UnfitPictureError("damaged; what says its size is no number")
    if not all(getattr(other, "subfiletype", 0) & _PREVIEW for other in islice(file.pages, 1, 1 + _LEVELS)):
        raise UnfitPictureError("has several pages; split it first, for example: tiffsplit FILE")
    if _DNG_VERSION in page.tags or page.subfiletype & _PREVIEW:
        raise UnfitPictureError("a raw photograph, of which a preview could be read at most; develop it first")
    if 0 in page.shaped:
        raise UnfitPictureError("damaged; it has no pixels")
    samples, bits = page.samplesperpixel, page.bitspersample
    if problem := excess(page.imagewidth, page.imagelength, samples * (1 if bits <= 8 else 2), file_bytes, max_pixels):
        raise UnfitPictureError(problem)
    if len(page.dataoffsets) != math.prod(page.chunked):
        raise UnfitPictureError(f"damaged; it has {len(page.dataoffsets)} of {math.prod(page.chunked)} strips or tiles")
    # A tile may be larger than the picture, and all of its samples may be in one strip.
    if excess(math.prod(page.chunks), 1, 1 if bits <= 8 else 2, file_bytes, samples * MAX_PIXELS):
        raise UnfitPictureError("damaged; its tiles are larger than the file can hold")
    if page.sampleformat in _KINDS or not 1 <= bits <= 16:
        kind = _KINDS.get(page.sampleformat, "integers")  # type: ignore[call-overload]  # an int where it is unknown
        raise UnfitPictureError(f"{bits}-bit {kind} per channel; convert it to unsigned integers of 8 or 16 bits")
    colors = _COLORS.get(page.photometric)  # type: ignore[call-overload]
    if colors is None:
        raise UnfitPictureError(f"its colours are {_name(page.photometric)}; convert it to RGB")
    if page.photometric == PHOTOMETRIC.SEPARATED and page.tags.valueof(_INK_SET, _CMYK) != _CMYK:
        raise UnfitPictureError("its inks are not CMYK; convert it to RGB")
    if page.imagedepth > 1:
        raise UnfitPictureError(f"a volume of {page.imagedepth} slices; split it first")
    extra = samples - colors
    if extra < 0 or extra > 1 or (extra and page.photometric == PHOTOMETRIC.PALETTE):
        raise UnfitPictureError(f"{samples} channels of colours {_name(page.photometric)}; convert it to gray or RGB")
    if not extra:
        return None
    kind = page.extrasamples[0] if page.extrasamples else EXTRASAMPLE.UNASSALPHA  # missing: what every reader assumes
    if kind == EXTRASAMPLE.UNSPECIFIED:
        raise UnfitPictureError("has a channel that is neither colour nor transparency; remove it")
    return kind


def _refuse_parts(page: tifffile.TiffPage, content: bytes) -> None:
    """Raise UnfitPictureError for strips or tiles that say that they are larger than the picture has room for."""
    if page.compression not in (*_JPEG, *_FILES):
        kind = getattr(page.compression, "name", page.compression)
        raise UnfitPictureError(f"compressed as {kind}; save it again, with LZW or Deflate")
    height, width = page.chunks[:2] if page.planarconfig == PLANARCONFIG.CONTIG else page.chunks[-2:]
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        part = content[offset : offset + length]
        if not part:
            continue
        size = jpeg_size(part) if page.compression in _JPEG else _file_size(part, _FILES[page.compression])
        if size is None or size[0] > width + _ROUNDED or size[1] > height + _ROUNDED:
            raise UnfitPictureError("damaged; a strip or tile is not of the size that it should have")
        if page.compression in _JPEG and has_too_many_scans(part):
            raise UnfitPictureError(f"over {MAX_SCANS} scans; save it again")


def _file_size(content: bytes, file_format: str) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(content), formats=[file_format]) as image:
            return image.size
    except Exception:  # Pillow raises many kinds for damaged headers
        return None


def _name(photometric: int) -> str:
    return photometric.name if isinstance(photometric, PHOTOMETRIC) else f"of unknown kind {photometric}"


def _by_libtiff(content: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Luma and chroma that are not compressed as JPEG: libtiff knows its subsampling."""
    if page.bitspersample != 8 or page.samplesperpixel != 3:
        raise UnfitPictureError("its colours are YCBCR with other than 8 bits or 3 channels; convert it to RGB")
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def _is_plain_ycbcr(page: tifffile.TiffPage) -> bool:
    """Whether each pixel has its own three bytes. Pillow 12 does not read these files."""
    subsampling = page.tags.valueof(_YCBCR_SUBSAMPLING, (2, 2))
    layout = (page.compression, page.bitspersample, page.samplesperpixel, subsampling)
    return layout == (COMPRESSION.NONE, 8, 3, (1, 1))


def _rgb_of_ycbcr(values: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(values), "YCbCr").convert("RGB"))


def _pixels(page: tifffile.TiffPage, values: np.ndarray, extra: int | None) -> np.ndarray:
    """Samples [H, W, S] as gray or RGB with straight alpha, of the full range of uint8 or uint16."""
    bits = page.bitspersample
    if page.photometric == PHOTOMETRIC.PALETTE:
        return _palette(page)[values[..., 0]]
    values = _full_range(values, bits)
    most = np.iinfo(values.dtype).max
    alpha = values[..., -1:] if extra is not None else None
    color = values if alpha is None else values[..., :-1]
    if extra == EXTRASAMPLE.ASSOCALPHA:
        assert alpha is not None
        color = _straight(color, alpha, page.photometric)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        color = most - color
    elif page.photometric == PHOTOMETRIC.SEPARATED:
        rgb = rgb_of_inks(color, page.iccprofile)
        color = _cmyk_to_rgb(color) if rgb is None else rgb
    return color if alpha is None else np.concatenate([color, alpha], 2)


def _full_range(values: np.ndarray, bits: int) -> np.ndarray:
    if bits in (8, 16):
        return values
    most, target = 2**bits - 1, (np.uint8 if bits < 8 else np.uint16)
    scaled = values.astype(np.uint32) * np.iinfo(target).max
    return ((scaled + most // 2) // most).astype(target)


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """[colours, 3]: uint8 if the file's 16 bits hold no more, as almost always."""
    if page.colormap is None or page.colormap.ndim != 2 or len(page.colormap) != 3:
        raise UnfitPictureError("damaged; it has no palette")
    colors = np.asarray(page.colormap, np.uint16).T
    high = colors >> 8
    if not high.any() and colors.any():  # some programs write 8 bits where 16 belong
        high = colors
    elif (colors & 255 != 0).any() and (colors != high * 257).any():
        return colors
    return high.astype(np.uint8)


def _straight(color: np.ndarray, alpha: np.ndarray, photometric: int) -> np.ndarray:
    """Premultiplied colours divided by alpha; what is transparent becomes black."""
    if photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
        raise UnfitPictureError(f"premultiplied transparency with colours {_name(photometric)}; convert it to RGB")
    most = np.iinfo(color.dtype).max
    over = np.maximum(alpha, 1).astype(np.uint32)
    divided = (color.astype(np.uint32) * most + over // 2) // over
    return np.where(alpha > 0, np.minimum(divided, most), 0).astype(color.dtype)


def _cmyk_to_rgb(inks: np.ndarray) -> np.ndarray:
    """As Pillow converts without a profile: each of RGB is (1 - ink) * (1 - black)."""
    most = int(np.iinfo(inks.dtype).max)
    light = most - inks.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + most // 2) // most).astype(inks.dtype)
