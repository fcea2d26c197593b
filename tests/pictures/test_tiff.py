"""Every kind of TIFF is read right or refused by name."""

import contextlib
import io
import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import read_picture

from .test_read_and_write import NAME, saved


def tiff(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def samples(photo, bits: int) -> np.ndarray:
    """uint8 or uint16 [H, W, 4] within 0 to 2**bits - 1, varied in every bit."""
    deep = photo[:40, :56].astype(np.uint32) * 256 + photo[20:60, :56][::-1]
    values = np.dstack([deep, deep[..., :1][:, ::-1]]) >> (16 - bits)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def full_range(values: np.ndarray, bits: int) -> np.ndarray:
    target = np.uint8 if bits <= 8 else np.uint16
    return np.round(values / (2**bits - 1) * np.iinfo(target).max).astype(target)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_layout_of_gray_and_rgb(photo, bits, channels):
    values = samples(photo, bits)[..., [0, 3] if channels == 2 else range(channels)]
    gray, extra = channels < 3, ["unassalpha"] if channels in (2, 4) else None
    layouts = itertools.product(
        "<>",
        ("contig", "separate"),
        (None, "adobe_deflate", "lzw", "packbits", "zstd"),
        (False, True),
        (None, (16, 16)),
    )
    for byteorder, planar, compression, predictor, tile in layouts:
        if (predictor and compression in (None, "packbits")) or (channels == 1 and planar == "separate"):
            continue
        content = tiff(
            np.moveaxis(values, 2, 0).copy() if planar == "separate" else values if channels > 1 else values[..., 0],
            photometric="minisblack" if gray else "rgb", planarconfig=planar if channels > 1 else None,
            byteorder=byteorder, compression=compression, predictor=predictor, tile=tile, extrasamples=extra,
        )  # fmt: skip
        picture = read_picture(NAME, content)
        assert np.array_equal(picture.pixels, values), (byteorder, planar, compression, predictor, tile)
        assert (picture.alpha is not None) == (extra is not None)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_every_depth_of_gray(photo, bits, photometric):
    values = samples(photo, bits)[..., 0]
    content = tiff(values if bits > 1 else values.astype(bool), photometric=photometric, bitspersample=bits)
    wanted = full_range(values, bits)
    picture = read_picture(NAME, content)
    assert picture.color.dtype == wanted.dtype
    assert np.array_equal(picture.color[..., 0], wanted if photometric == "minisblack" else ~wanted)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_transparency_is_divided_out(photo, bits, channels):
    values = samples(photo, bits)[..., [0, 3] if channels == 2 else range(4)]
    most = 2**bits - 1
    alpha = values[..., -1:].astype(np.uint64)
    stored = values.copy()
    stored[..., :-1] = (values[..., :-1] * alpha + most // 2) // most
    kind = "minisblack" if channels == 2 else "rgb"
    content = tiff(stored, photometric=kind, planarconfig="contig", extrasamples=["assocalpha"])
    picture = read_picture(NAME, content)
    assert np.array_equal(picture.alpha, values[..., -1])
    clear = picture.alpha > most // 2
    error = np.abs(picture.color.astype(int) - values[..., :-1])[clear]
    assert error.max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_is_converted(photo, bits):
    values = samples(photo, bits)
    picture = read_picture(NAME, tiff(values, photometric="separated", planarconfig="contig"))
    most = 2**bits - 1
    wanted = (1 - values[..., :3] / most) * (1 - values[..., 3:] / most) * most
    assert np.abs(picture.color - wanted).max() <= 1


def test_palettes_of_8_and_16_bits(photo):
    image = Image.fromarray(photo).quantize(32)
    assert np.array_equal(read_picture(NAME, saved(image, "TIFF")).color, np.array(image.convert("RGB")))
    colors = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    index = photo[..., 0]
    picture = read_picture(NAME, tiff(index, photometric="palette", colormap=colors))
    assert np.array_equal(picture.color, colors.T[index])


@pytest.mark.parametrize("compression", ["jpeg", "group3", "group4", "tiff_ccitt", "raw YCbCr"])
def test_what_scanners_and_cameras_write(photo, compression):
    image = Image.fromarray(photo)
    if compression == "raw YCbCr":
        content = saved(image.convert("YCbCr"), "TIFF")
    elif compression == "jpeg":
        content = saved(image.convert("YCbCr"), "TIFF", compression="jpeg")
    else:
        content = saved(image.convert("1"), "TIFF", compression=compression)
    # Pillow 12 does not read the raw YCbCr that it writes.
    wanted = image.convert("YCbCr") if compression == "raw YCbCr" else Image.open(io.BytesIO(content))
    wanted = np.array(wanted.convert("L" if wanted.mode == "1" else "RGB"))
    color = read_picture(NAME, content).color
    assert np.abs(color.squeeze().astype(int) - wanted).max() <= (2 if "jpeg" in compression else 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda v: tiff(v[..., 0].astype(np.float32)), "32-bit floating point"),
        (lambda v: tiff(v[..., 0].astype(np.float16)), "16-bit floating point"),
        (lambda v: tiff(v[..., 0].astype(np.int16)), "16-bit signed integers"),
        (lambda v: tiff(v[..., 0].astype(np.uint32)), "32-bit integers"),
        (lambda v: tiff(v[..., 0].astype(np.complex64)), "complex"),
        (lambda v: tiff(np.dstack([v, v[..., :1]]), photometric="minisblack", planarconfig="contig"), "5 channels"),
        (lambda v: tiff(v[..., :3], photometric="cielab"), "CIELAB"),
        (lambda v: tiff(v, photometric="rgb", extrasamples=["unspecified"]), "neither colour nor transparency"),
        (lambda v: tiff(v, photometric="separated", extratags=[(332, "H", 1, 2, True)]), "not CMYK"),
        (lambda v: tiff(v[..., 0], photometric="cfa"), "CFA"),
        (lambda v: tiff(v[..., 0], subfiletype=1), "raw photograph"),
        (lambda v: tiff(v[..., :2], photometric="minisblack", planarconfig="contig",
                        extrasamples=["unassalpha"])[:-900], None),
        (lambda v: tiff(np.stack([v[..., 0]] * 3), photometric="minisblack"), "pages"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bits", [16])
def test_what_is_not_read_is_named(photo, make, named, bits):
    with pytest.raises(UserError, match=named):
        read_picture(NAME, make(samples(photo, bits)))


def test_smaller_copies_are_no_pages(photo):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for level in (1, 2, 4):
            file.write(photo[::level, ::level], photometric="rgb", subfiletype=int(level > 1), metadata=None)
    assert np.array_equal(read_picture(NAME, buffer.getvalue()).color, photo)


@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("compression", ["png", "jpeg2000", "webp", "lzma"])
def test_strips_and_tiles_that_are_files(photo, compression, tile):
    values = samples(photo, 8)[..., :3]
    picture = read_picture(NAME, tiff(values, photometric="rgb", compression=compression, tile=tile))
    assert np.array_equal(picture.color, values)


@pytest.mark.parametrize("compression", ["jpeg", "png", "jpeg2000", "webp", "jpegxl", "lerc"])
def test_tile_that_claims_more_pixels_than_its_place_has_is_refused(photo, compression):
    """Its decoder would allocate them all."""
    small, large = (tiff(photo[:16, :side], photometric="rgb", compression=compression, tile=(16, side)) for side in
                    (16, 80))  # fmt: skip
    pages = [tifffile.TiffFile(io.BytesIO(content)).pages[0] for content in (small, large)]
    (start,), (length,) = pages[1].dataoffsets, pages[1].databytecounts
    entry, count = (pages[0].tags[name].valueoffset for name in ("TileOffsets", "TileByteCounts"))
    forged = bytearray(small + large[start : start + length])
    forged[entry : entry + 4], forged[count : count + 4] = (
        len(small).to_bytes(4, "little"),
        length.to_bytes(4, "little"),
    )
    with pytest.raises(UserError, match=r"size|compressed"):
        read_picture(NAME, bytes(forged))


@pytest.mark.long
def test_large_picture_in_one_strip():
    """61 megapixels are 183 million values. What is needed to read it is bounded by its own size."""
    row = np.random.default_rng(0).integers(0, 65536, (1, 9500, 3), np.uint16)
    values = np.broadcast_to(row, (6400, 9500, 3))
    content = tiff(values, photometric="rgb", planarconfig="contig", compression="zstd", rowsperstrip=6400)
    color = read_picture(NAME, content).color
    assert np.array_equal(color[::999], values[::999])


def test_missing_tiles_are_named(photo):
    content = bytearray(tiff(photo[..., 0], tile=(16, 16)))
    content[tifffile.TiffFile(io.BytesIO(content)).pages[0].tags[257].valueoffset + 2] = 3  # 200,000 more rows
    with pytest.raises(UserError, match="damaged"):
        read_picture(NAME, bytes(content))


@pytest.mark.parametrize("tag", [256, 257, 258, 277, 278])
@pytest.mark.parametrize("kind", [1, 2, 5, 12])
def test_size_that_is_no_number_is_named(photo, tag, kind):
    """Bytes, text, fractions or floating point where a size belongs; or the picture is right all the same."""
    content = bytearray(tiff(photo[..., 0]))
    page = tifffile.TiffFile(io.BytesIO(content)).pages[0]
    place = page.tags[tag].offset
    content[place + 2 : place + 8] = kind.to_bytes(2, "little") + (3).to_bytes(4, "little")
    with contextlib.suppress(UserError):
        assert np.array_equal(read_picture(NAME, bytes(content)).color[..., 0], photo[..., 0])


def test_a_damaged_palette_is_named(photo):
    content = saved(Image.fromarray(photo).quantize(16), "TIFF")
    entry = content.index((320).to_bytes(2, "little") + (3).to_bytes(2, "little"))  # ColorMap, of shorts
    for count in (0, 1, 512):
        broken = content[: entry + 4] + count.to_bytes(4, "little") + content[entry + 8 :]
        with pytest.raises(UserError):
            read_picture(NAME, broken)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_ycbcr_that_is_not_compressed_is_turned_upright(photo, orientation):
    image = Image.fromarray(photo).convert("YCbCr")
    content = saved(image, "TIFF", tiffinfo={274: orientation})
    turned = np.rot90(np.array(image.convert("RGB")), {1: 0, 3: 2, 6: 3}[orientation])
    assert np.array_equal(read_picture(NAME, content).color, turned)
