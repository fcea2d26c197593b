"""Odd and broken pictures: each is upscaled, or refused in one line that names it; no traceback, no partial file."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from dlgsanet.cli import main


def saved(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(width, height, depth=8, kind=2, data=b"", extra=b""):
    """A PNG file made by hand."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def inputs(photo):
    """name -> (content, None if it is to be upscaled, else what the error must name)."""
    image = Image.fromarray(photo)
    gray, deep = image.convert("L"), photo.astype(np.uint16) * 257
    alpha = image.copy()
    alpha.putalpha(gray)
    whole_png, whole_jpg = saved(image, "PNG"), saved(image, "JPEG")
    whole_webp, whole_tif, whole_bmp = saved(image, "WEBP"), saved(image, "TIFF"), saved(image, "BMP")
    frames = [image, image.rotate(90, expand=False)]
    exif = image.getexif()
    exif[0x0112] = 6
    return {
        # odd, but pictures
        "one_pixel.png": (saved(image.crop((0, 0, 1, 1)), "PNG"), None),
        "one_row.png": (saved(image.crop((0, 0, 60, 1)), "PNG"), None),
        "one_column.jpg": (saved(image.crop((0, 0, 1, 60)), "JPEG"), None),
        "black_and_white.png": (saved(image.convert("1"), "PNG"), None),
        "two_bits.png": (saved(image.quantize(4), "PNG", bits=2), None),
        "palette.bmp": (saved(image.quantize(16), "BMP"), None),
        "palette_with_transparency.png": (saved(image.quantize(16), "PNG", transparency=0), None),
        "transparent_color.png": (saved(image, "PNG", transparency=(1, 2, 3)), None),
        "gray_alpha.png": (saved(alpha.convert("LA"), "PNG"), None),
        "wholly_transparent.webp": (saved(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), "WEBP"), None),
        "interlaced.tif": (tiff(photo, planarconfig="contig", rowsperstrip=7), None),
        "planar.tif": (tiff(np.moveaxis(deep, 2, 0).copy(), planarconfig="separate", photometric="rgb"), None),
        "tiled.tif": (tiff(deep, photometric="rgb", tile=(16, 16)), None),
        "big_endian.tif": (tiff(deep[..., 0], byteorder=">"), None),
        "lzw.tif": (saved(image, "TIFF", compression="tiff_lzw"), None),
        "sixteen_bits_gray.png": (saved(Image.fromarray(deep[..., 0]), "PNG"), None),
        "cmyk.jpg": (saved(image.convert("CMYK"), "JPEG"), None),
        "progressive.jpg": (saved(image, "JPEG", progressive=True), None),
        "on_its_side.jpg": (saved(image, "JPEG", exif=exif), None),
        "phone.jpg": (saved(image, "MPO", save_all=True, append_images=[image]), None),
        "broken_entries.jpg": (saved(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), None),
        "broken_profile.png": (saved(image, "PNG", icc_profile=b"nonsense"), None),
        "really_a_jpeg.png": (whole_jpg, None),
        "UPPER.PNG": (whole_png, None),
        "two words & ünïcode.png": (whole_png, None),
        "still.gif": (saved(image, "GIF"), None),
        "gray.pgm": (saved(gray, "PPM"), None),
        "lossless.webp": (saved(image, "WEBP", lossless=True), None),
        "high_color.bmp": (whole_bmp[:28] + struct.pack("<H", 24) + whole_bmp[30:], None),
        # cannot be upscaled
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"these are only words", "not an image"),
        "zeros.jpg": (bytes(5000), "not an image"),
        "cut.png": (whole_png[: len(whole_png) // 2], "cut.png: "),
        "cut.jpg": (whole_jpg[: len(whole_jpg) // 2], "cut.jpg: "),
        "cut.webp": (whole_webp[: len(whole_webp) // 2], "cut.webp: "),
        "cut.tif": (whole_tif[: len(whole_tif) // 2], "cut.tif: "),
        "cut.bmp": (whole_bmp[: len(whole_bmp) // 2], "cut.bmp: "),
        "header_alone.png": (whole_png[:33], "header_alone.png: "),
        "cut_in_header.png": (whole_png[:20], "damaged or cut off"),
        "cut_in_header.jpg": (whole_jpg[:20], "damaged or cut off"),
        "damaged_data.png": (png(30, 30, data=b"\0" + bytes(10)), "damaged_data.png: "),
        "no_pixels.png": (png(0, 10), "no_pixels.png: "),
        "bomb.png": (png(200_000, 200_000), "bomb.png: "),
        "bomb_of_16_bits.png": (png(60_000, 60_000, depth=16), "bomb_of_16_bits.png: "),
        "animated.gif": (saved(image, "GIF", save_all=True, append_images=frames[1:]), "animated"),
        "animated.png": (saved(image, "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "animated.webp": (saved(image, "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "pages.tif": (saved(image, "TIFF", save_all=True, append_images=frames[1:]), "several pages"),
        "archive.zip": (b"PK\x03\x04" + bytes(30), "an archive; unpack it first"),
        "film.mp4": (b"\0\0\0\x20ftypisom", "a video"),
        "floating_point.tif": (tiff(photo[..., 0].astype(np.float32)), "floating_point.tif: "),
        "integers.tif": (tiff(photo[..., 0].astype(np.int32)), "integers.tif: "),
        "icon.png": (saved(image, "ICO"), "ICO is not read"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "script.png: "),
    }  # fmt: skip


def test_odd_and_broken_pictures(photo, weights, tmp_path, capsys):
    table = inputs(photo[:24, :30])
    assert len(table) > 40
    (tmp_path / "in").mkdir()
    for name, (content, _) in table.items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "dangling.png").symlink_to(tmp_path / "nowhere")
    for name, (_, fault) in table.items():
        target = tmp_path / "out" / f"{name}.png"
        code = main(["upscale", str(tmp_path / "in" / name), "-o", str(target), "--weights", str(weights)])
        printed = capsys.readouterr().err
        assert "Traceback" not in printed, name
        assert "Error:" not in printed, f"{name}: {printed}"
        if fault is None:
            assert code == 0, printed
            with Image.open(target) as result:
                result.load()
                target.unlink()
        else:
            assert code == 2, name
            last = printed.splitlines()[-1]
            assert last.startswith("dlgsanet: error: ")
            assert name in last
            assert fault in last
        assert not [*(tmp_path / "out").glob("*"), *(tmp_path / "out").glob(".*")], name


@pytest.mark.parametrize(
    ("size", "mode", "target", "fault"),
    [
        ((8200, 2), "RGB", "wide.webp", "WEBP holds 16383"),
        ((2, 32768), "L", "tall.jpg", "JPEG holds 65500"),
        ((20, 20), "RGBA", "clear.jpg", "cannot hold; use .png"),
        ((20, 20), "LA", "clear.bmp", "cannot hold; use .png"),
    ],
)
def test_results_that_a_format_cannot_hold(weights, tmp_path, capsys, size, mode, target, fault):
    Image.new(mode, size, 99 if mode == "L" else None).save(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / target), "--weights", str(weights)]) == 2
    assert fault in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / target).exists()


def test_a_file_without_end(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr("dlgsanet.pictures.reading.LARGEST_FILE", 3 << 20)
    assert main(["upscale", "/dev/zero", "-o", str(tmp_path / "a.png"), "--weights", str(weights)]) == 2
    assert "/dev/zero: over " in capsys.readouterr().err.splitlines()[-1]
