"""Reading and writing: what a picture has is kept."""

import dataclasses
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from dlgsanet.errors import UserError
from dlgsanet.pictures.picture import Picture
from dlgsanet.pictures.reading import read_picture
from dlgsanet.pictures.writing import encode

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NAME = Path("picture")
WHITE = struct.pack(">3i", 63190, 65536, 54061)  # D50


def saved(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pictures(photo):
    """Of every number of channels and depth, by name."""
    alpha = np.arange(photo[..., 0].size, dtype=np.uint32).reshape(photo.shape[:2]) * 7 % 256
    deep = photo.astype(np.uint16) * 256 + photo[::-1]
    for depth, color in (("8", photo), ("16", deep)):
        gray = np.ascontiguousarray(color[..., :1])
        channel = (alpha * (257 if depth == "16" else 1)).astype(color.dtype)
        yield f"gray {depth}", Picture(gray)
        yield f"RGB {depth}", Picture(color, icc_profile=PROFILE)
        yield f"RGBA {depth}", Picture(color, channel, icc_profile=PROFILE)
        yield f"gray and alpha {depth}", Picture(gray, channel)


@pytest.mark.parametrize("extension", [".png", ".tif", ".bmp"])
def test_lossless_formats_give_back_what_was_written(photo, extension):
    for name, picture in pictures(photo):
        if extension == ".bmp" and (picture.alpha is not None or "16" in name):
            continue
        back = read_picture(NAME, encode(picture, extension))
        if name == "gray and alpha 16":  # written as RGB, see writing.py
            back = back.with_pixels(back.color[..., :1], back.alpha)
        assert back.color.dtype == picture.color.dtype, name
        assert np.array_equal(back.pixels, picture.pixels), name
        assert back.icc_profile == (None if extension == ".bmp" else picture.icc_profile), name


def test_missing_package_is_not_called_a_damaged_picture(photo, monkeypatch):
    content = encode(Picture(photo), ".png")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UserError, match="pip install imagecodecs"):
        read_picture(NAME, content)


def gray_profile(gamma: float) -> bytes:
    """A colour profile for gray pixels."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I5s78x", 5, b"gray\0"),
        b"wtpt": b"XYZ \0\0\0\0" + WHITE,
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)),
        b"cprt": b"text\0\0\0\0none",
    }
    return profile_of(b"mntrGRAYXYZ ", tags)


def profile_of_inks() -> bytes:
    """A colour profile for CMYK pixels: black with K, with other inks L* 40."""
    curve, unit = bytes(range(256)), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lightness = (255, 0, *(102, 0) * 7)  # of the corners: no ink, K, Y, YK, M ...
    colors = b"".join(bytes([light, 128, 128]) for light in lightness)
    return profile_of(b"prtrCMYKLab ", {b"A2B0": b"mft1\0\0\0\0\4\3\2\0" + unit + curve * 4 + colors + curve * 3})


def profile_of(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile (ICC.1:2001-04) with these tags."""
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">2I", start + len(body), len(content))
        body += content
    size = struct.pack(">I", start + len(body))
    header = size + b"lcms\2\x10\0\0" + kind + bytes(12) + b"acsp" + bytes(28) + WHITE
    return header.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("extension", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_a_profile_for_gray_is_in_no_file_of_rgb(photo, extension):
    for name, picture in pictures(photo):
        if "gray" not in name or (extension in (".jpg", ".bmp") and picture.alpha is not None):
            continue
        picture = dataclasses.replace(picture, icc_profile=gray_profile(1.0))  # linear light
        back = read_picture(NAME, encode(picture, extension, quality=100))
        if extension not in (".webp", ".bmp"):
            assert back.color.shape[2] == 1, name
            assert back.icc_profile == picture.icc_profile, name
            continue
        assert back.icc_profile is None, name
        light = picture.in_8_bits().color / 255
        srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
        assert np.abs(back.color - 255 * srgb).mean() < 2, name
        assert picture.alpha is None or np.array_equal(back.alpha, picture.in_8_bits().alpha), name
    rgb = saved(Image.fromarray(photo), "WEBP", icc_profile=gray_profile(1.0))
    assert read_picture(NAME, rgb).icc_profile is None


def test_colours_of_a_profile_are_right_in_bmp(photo):
    red_is_green = PROFILE.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    back = read_picture(NAME, encode(Picture(photo, icc_profile=red_is_green), ".bmp"))
    assert np.abs(back.color.astype(int) - photo[..., [1, 0, 2]]).max() <= 1


def test_entries_do_not_say_the_size_of_the_input(photo):
    exif = Image.Exif()
    exif[0x0100], exif[0x010F] = 999, "Maker"
    exif.get_ifd(0x8769).update({0xA002: 999, 0xA003: 999, 0x9003: "2026:05:05 10:00:00"})
    picture = read_picture(NAME, saved(Image.fromarray(photo), "JPEG", exif=exif))
    written = Image.open(io.BytesIO(encode(picture, ".jpg"))).getexif()
    assert {0x010F, 0x0112, 0x8769} == set(written)
    assert dict(written.get_ifd(0x8769)) == {0x9003: "2026:05:05 10:00:00"}


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_lacks_only_its_end_marker(photo, progressive):
    whole = saved(Image.fromarray(photo), "JPEG", progressive=progressive)
    for missing in (1, 2):
        assert np.array_equal(read_picture(NAME, whole[:-missing]).color, read_picture(NAME, whole).color)
    with pytest.raises(UserError, match="damaged or cut off"):
        read_picture(NAME, whole[:-40])


@pytest.mark.parametrize("extension", [".jpg", ".webp"])
def test_lossy_formats_stay_near_and_keep_the_profile(photo, extension):
    for name, picture in pictures(photo):
        if extension == ".jpg" and picture.alpha is not None:
            continue
        wanted = picture.in_8_bits()
        back = read_picture(NAME, encode(picture, extension, quality=100))
        assert np.abs(back.color.astype(int) - wanted.color).mean() < 2, name
        assert back.icc_profile == picture.icc_profile, name
        if picture.alpha is not None:
            assert np.array_equal(back.alpha, wanted.alpha), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright_and_keep_their_entries(photo, orientation, file_format):
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    content = saved(image, file_format, exif=exif)
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    picture = read_picture(NAME, content)
    assert np.array_equal(picture.color, wanted)
    if file_format != "TIFF":
        written = Image.open(io.BytesIO(encode(picture, ".jpg")))
        assert written.getexif()[0x0112] == 1
        assert written.getexif()[0x010F] == "Maker"


def test_16_bits_are_turned_upright_too(photo):
    deep = photo.astype(np.uint16) * 257
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, deep, photometric="rgb", extratags=[(0x0112, "H", 1, 6, True)])
    assert np.array_equal(read_picture(NAME, buffer.getvalue()).color, np.rot90(deep, -1))


def test_entries_and_profile_of_16_bits_are_kept(photo):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    picture = Picture(photo.astype(np.uint16) * 257, icc_profile=PROFILE, exif=exif.tobytes())
    back = Image.open(io.BytesIO(encode(picture, ".png")))
    back.load()
    assert back.info["icc_profile"] == PROFILE
    assert back.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("profile", [b"", PROFILE])
def test_what_the_colours_of_a_png_mean_is_kept(photo, deep, profile):
    chunks = PngInfo()
    primaries = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    for kind, data in (
        (b"gAMA", struct.pack(">I", 100000)),
        (b"cHRM", struct.pack(">8I", *primaries)),
        (b"sRGB", b"\2"),
        (b"cICP", b"\x09\x10\0\1"),  # BT.2100 PQ
        (b"cLLI", bytes(7)),  # damaged
    ):
        chunks.add(kind, data)
    content = saved(Image.fromarray(photo), "PNG", pnginfo=chunks, **({"icc_profile": profile} if profile else {}))
    picture = read_picture(NAME, content)
    if deep:
        picture = picture.with_pixels(picture.color.astype(np.uint16) * 257, None)
    written = encode(picture, ".png")
    assert b"\0\0\0\4cICP\x09\x10\0\1" in written[: written.index(b"IDAT")]
    assert b"cLLI" not in written
    info = Image.open(io.BytesIO(written)).info
    if profile:
        assert info["icc_profile"] == profile
        assert "gamma" not in info
    else:
        assert (info["gamma"], info["srgb"]) == (1.0, 2)
        assert info["chromaticity"] == tuple(value / 100000 for value in primaries)
    assert encode(picture, ".jpg")


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4), ("CMYK", 3), ("I;16", 1)],
)
def test_every_kind_of_pixel_is_read(photo, mode, channels):
    image = Image.fromarray(photo)
    image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    picture = read_picture(NAME, saved(image, "TIFF"))
    assert picture.pixels.shape == (*photo.shape[:2], channels)
    assert picture.color.dtype == (np.uint16 if mode == "I;16" else np.uint8)


def test_a_transparent_palette_has_alpha(photo):
    image = Image.fromarray(photo).quantize(16)
    picture = read_picture(NAME, saved(image, "PNG", transparency=3))
    assert sorted(np.unique(picture.alpha)) == [0, 255]


def test_a_photograph_with_broken_entries_is_read_all_the_same(photo):
    content = saved(Image.fromarray(photo), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=100)
    assert read_picture(NAME, content).color.shape == photo.shape


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack(">HHI4s", 0x0100, 2, 4, b"abc"),  # text as the width
        struct.pack(">HHIhh", 0x013E, 8, 2, -5, -6),  # negative numbers
        struct.pack(">HHI4s", 0x011A, 2, 4, b"abc"),  # text as the resolution
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_with_an_odd_entry_is_turned_upright(photo, entry, file_format):
    """Pillow reads entries that it cannot write."""
    turned = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + min(turned, entry) + max(turned, entry) + bytes(4)
    content = saved(Image.fromarray(photo), file_format, exif=exif)
    wanted = np.array(Image.open(io.BytesIO(content)).convert("RGB").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_picture(NAME, content).color, wanted)
