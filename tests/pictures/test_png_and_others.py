"""PNG, PGM, PPM, AVIF and HEIC: depth and transparency are kept; small files cannot take much memory or time."""

import io
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from dlgsanet.data.images import read_image
from dlgsanet.errors import UserError
from dlgsanet.pictures.bounds import MAX_SCANS
from dlgsanet.pictures.picture import Picture
from dlgsanet.pictures.reading import pixels_of, read_picture
from dlgsanet.pictures.upscale import upscale

from .test_odd_inputs import png
from .test_read_and_write import NAME, profile_of_inks, saved
from .test_tiff import full_range, samples, tiff


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def rows_of(values: np.ndarray, bits: int) -> bytes:
    """Rows of [H, W, C] as PNG packs them, each after its filter byte."""
    if bits == 16:
        packed = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    else:
        planes = np.unpackbits(values.reshape(len(values), -1, 1).astype(np.uint8), axis=2)[..., 8 - bits :]
        packed = np.packbits(planes.reshape(len(values), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


@pytest.mark.parametrize(("kind", "bits"), [*(("gray", bits) for bits in (1, 2, 4, 8, 16)), ("rgb", 8), ("rgb", 16)])
def test_a_transparent_value_of_a_png_is_kept(photo, kind, bits):
    values = samples(photo, bits)[..., : 1 if kind == "gray" else 3]
    clear = values[3, 5]
    extra = chunk(b"tRNS", clear.astype(">u2").tobytes())
    height, width = values.shape[:2]
    content = png(width, height, bits, 0 if kind == "gray" else 2, rows_of(values, bits), extra)
    picture = read_picture(NAME, content)
    most = 255 if bits <= 8 else 65535
    assert np.array_equal(picture.color, full_range(values, bits))
    assert np.array_equal(picture.alpha, np.where((values == clear).all(2), 0, most))


@pytest.mark.parametrize("most", [1, 100, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_the_maxval_of_pgm_and_ppm_is_white(photo, magic, most):
    gray, plain = magic in ("P2", "P5"), magic in ("P2", "P3")
    values = (samples(photo, 16)[..., : 1 if gray else 3].astype(np.uint64) * most // 65535).astype(np.uint16)
    height, width = values.shape[:2]
    header = f"{magic}\n# a comment\n{width} {height}\n{most}\n".encode()
    if plain:
        content = header + " ".join(map(str, values.ravel())).encode() + b"\n"
    else:
        content = header + values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    picture = read_picture(NAME, content)
    target = 255 if most < 256 else 65535
    assert picture.color.dtype == (np.uint8 if most < 256 else np.uint16)
    assert np.abs(picture.color.astype(int) - np.round(values / most * target)).max() <= (1 if most < 255 else 0)
    if most > 255:
        with pytest.raises(UserError, match="picture: "):
            read_picture(NAME, content[: len(content) // 2])


def test_training_reads_pixels_as_upscale_does(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(photo[..., 0]).save(tmp_path / "g.tif")
    Image.fromarray(photo[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    assert np.array_equal(read_image(tmp_path / "a.png"), photo)
    assert np.array_equal(read_image(tmp_path / "g.tif"), photo[..., 0])
    with pytest.raises(UserError, match=r"deep\.tif: 16 bits"):
        read_image(tmp_path / "deep.tif")


def test_avif_is_read(photo):
    content = saved(Image.fromarray(photo), "AVIF", quality=95)
    picture = read_picture(NAME, content)
    assert picture.format == "AVIF"
    assert np.abs(picture.color.astype(int) - photo).mean() < 3


def test_heic_is_read_where_its_package_is_installed(photo):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(photo)).save(buffer, quality=95)
    picture = read_picture(NAME, buffer.getvalue())
    assert picture.format == "HEIF"
    assert np.abs(picture.color.astype(int) - photo).mean() < 3
    with pytest.raises(UserError, match="HEIF"):
        read_picture(NAME, buffer.getvalue()[:64])


def test_heic_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(UserError, match="pip install pillow-heif"):
        read_picture(NAME, b"\0\0\0\x18ftypheic" + bytes(100))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "video"),
        (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR"),
    ],
)
def test_other_kinds_of_files_are_named(content, named):
    with pytest.raises(UserError, match=named):
        read_picture(NAME, content)


@pytest.mark.parametrize(
    ("kind", "codes", "kept"),
    [
        ("AVIF", (12, 13), (12, 13)),  # Display P3
        ("HEIF", (9, 16), (9, 16)),  # BT.2100, PQ
        ("AVIF", (2, 18), (1, 18)),  # HLG, primaries not stated
        ("AVIF", (1, 13), None),  # sRGB
        ("HEIF", (2, 2), None),
    ],
)
def test_what_avif_and_heic_say_of_their_colors_is_kept(photo, network, tmp_path, kind, codes, kept):
    """They would be shown as sRGB: pale, or dark."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    elif "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    content = bytearray(saved(Image.fromarray(photo), kind))
    box = content.index(b"colrnclx") + 8
    content[box : box + 4] = bytes([0, codes[0], 0, codes[1]])
    source, target = tmp_path / f"a.{kind.lower()}", tmp_path / "a.png"
    source.write_bytes(content)
    upscale(source, network, output=target)
    assert target.read_bytes().count(b"\0\0\0\4cICP") == (kept is not None)
    if not kept:
        upscale(source, network, output=target.with_suffix(".jpg"))
    else:
        with pytest.raises(UserError, match=r"a\.webp: its colours are not sRGB \(cICP\), which only PNG keeps"):
            upscale(source, network, output=target.with_suffix(".webp"))
        assert b"\0\0\0\4cICP" + bytes([*kept, 0, 1]) in target.read_bytes()
        source.write_bytes(content + b"\0\0\0\x13colrnclx\0\1\0\x0d\0\6\x80")  # of another rendition
        upscale(source, network, output=target)
        assert b"cICP" not in target.read_bytes()


def progressive(scans: int) -> bytes:
    """A progressive JPEG with its last scan repeated until there are so many."""
    content = saved(Image.new("RGB", (64, 64), "teal"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (scans - content.count(b"\xff\xda") + 1) + content[-2:]


def pages(count: int) -> bytes:
    """A TIFF of so many pages of one pixel, written by hand: libraries take long for it."""
    size = 2 + 5 * 12 + 4
    entries = [(256, 1), (257, 1), (262, 1), (273, 8), (279, 1)]
    directory = struct.pack("<H", 5) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    starts = [8 + i * size for i in range(count)] + [0]
    return b"II*\0\x08\0\0\0" + b"".join(directory + struct.pack("<I", following) for following in starts[1:])


BOMBS = {
    "a PNG of few bytes": lambda: png(12_000, 14_000, depth=16),
    "a palette of few bytes": lambda: png(13_000, 13_000, depth=1, kind=3, extra=chunk(b"PLTE", bytes(6))),
    "a chunk as long as can be": lambda: (lambda p: p[:33] + b"\x7f\xff\xff\x00IDAT" + p[41:])(
        png(40, 40, depth=16, data=bytes(40 * 241))
    ),
    "a TIFF of many pages": lambda: pages(20_000),
    "a JPEG of many scans": lambda: progressive(MAX_SCANS + 60),
    "a JPEG of few bytes": lambda: (lambda j: j.replace(b"\0\x40\0\x40", b"\x33\0\x33\0"))(progressive(10)),
    "a TIFF of few bytes": lambda: (
        pages(1)
        .replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 13_000))
        .replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 13_000))
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_take_neither_memory_nor_time(name):
    content = BOMBS[name]()
    assert len(content) < 2_000_000
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_picture(NAME, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 2**27


def test_a_limit_of_pixels_is_kept(photo):
    content = saved(Image.fromarray(photo), "PNG")
    assert read_picture(NAME, content, max_pixels=photo[..., 0].size).size == photo.shape[:2]
    with pytest.raises(UserError, match="megapixels"):
        read_picture(NAME, content, max_pixels=photo[..., 0].size - 1)


def test_the_profile_of_inks_is_not_that_of_rgb(photo, network):
    image = Image.fromarray(photo).convert("CMYK")
    image.info["icc_profile"] = b"of inks"
    out = upscale(image, network)
    assert out.mode == "RGB"
    assert "icc_profile" not in out.info


def test_inks_with_a_profile_become_srgb():
    inks, profile = np.zeros((8, 16, 4), np.uint8), profile_of_inks()
    inks[:, 8:, 1] = 255
    image = Image.fromarray(inks, "CMYK")
    image.info["icc_profile"] = profile
    deep = tiff(inks.astype(np.uint16) * 257, photometric="separated", iccprofile=profile)
    pictures = [
        *(read_picture(NAME, saved(image, kind, icc_profile=profile)) for kind in ("JPEG", "TIFF")),
        read_picture(NAME, deep).in_8_bits(),
        Picture(pixels_of(image)),
    ]
    for picture in pictures:
        assert picture.icc_profile is None
        assert np.abs(picture.color[:, :7].astype(int) - 255).max() <= 1
        assert np.abs(picture.color[:, 9:].astype(int) - 94).max() <= 2  # L* 40


def test_subclasses_of_arrays_are_arrays(photo, network):
    gray = photo[..., 0]
    wanted = upscale(gray, network)
    for array in (np.matrix(gray), np.ma.masked_array(gray), np.rec.array(gray), gray.view(np.memmap)):
        assert np.array_equal(upscale(array, network), wanted)
