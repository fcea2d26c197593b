"""Read damaged picture files until the time is up: `python -m tests.pictures.fuzz_pictures FIRST_SEED SECONDS`.

Each file is read in 1 GB of address space. Any exception other than a UserError of one line ends the run and prints the
seed. So does a file that takes more than 10 seconds of processor time.
"""

import io
import sys
from pathlib import Path

import numpy as np
import skimage.data
import tifffile
from PIL import Image

from dlgsanet.pictures.reading import read_picture
from tests import fuzz

TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def pictures() -> list[bytes]:
    """Small files of every format, depth and layout."""
    photo = skimage.data.astronaut()[20:44, 180:200]
    image, deep = Image.fromarray(photo), photo.astype(np.uint16) * 257
    palette = image.quantize(16)
    saved = [
        (image, "PNG", {}), (image, "PNG", {"icc_profile": b"profile" * 9}), (palette, "PNG", {"transparency": 0}),
        (Image.fromarray(deep[..., 0]), "PNG", {}), (image.convert("1"), "PNG", {}), (image, "JPEG", {"exif": TURNED}),
        (image, "JPEG", {"progressive": True}), (image.convert("CMYK"), "JPEG", {}), (image, "WEBP", {}),
        (image, "WEBP", {"lossless": True}), (image, "TIFF", {"compression": "tiff_lzw"}), (palette, "TIFF", {}),
        (image.convert("1"), "TIFF", {"compression": "group4"}), (image, "TIFF", {"compression": "jpeg"}),
        (image.convert("YCbCr"), "TIFF", {}), (image, "BMP", {}), (palette, "BMP", {}), (image, "GIF", {}),
        (image, "PPM", {}), (image, "AVIF", {}), (image, "MPO", {"save_all": True, "append_images": [image]}),
    ]  # fmt: skip
    found = []
    for one, file_format, options in saved:
        buffer = io.BytesIO()
        one.save(buffer, file_format, **options)
        found.append(buffer.getvalue())
    planar, alpha = np.moveaxis(deep, 2, 0).copy(), np.dstack([deep, deep[..., :1]])
    for pixels, options in [
        (deep, {"photometric": "rgb", "compression": "adobe_deflate", "predictor": True, "tile": (16, 16)}),
        (planar, {"photometric": "rgb", "planarconfig": "separate", "byteorder": ">"}),
        (alpha, {"photometric": "rgb", "extrasamples": ["assocalpha"], "bigtiff": True}),
        (alpha, {"photometric": "separated"}),
        (deep[..., 0] >> 4, {"bitspersample": 12, "photometric": "miniswhite"}),
        (photo, {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)}),
        (photo, {"photometric": "rgb", "compression": "png"}),
        (photo, {"photometric": "rgb", "compression": "webp", "tile": (16, 16)}),
        (photo, {"photometric": "rgb", "compression": "jpeg2000"}),
        (deep, {"photometric": "rgb", "compression": "lzma", "rowsperstrip": 5}),
        (deep, {"photometric": "rgb", "compression": "zstd", "rowsperstrip": 5}),
    ]:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        found.append(buffer.getvalue())
    gray = deep[..., 0] // 64
    found.append(b"P5 20 24 1023\n" + gray.astype(">u2").tobytes())
    found.append(b"P2 20 24 1023\n" + " ".join(map(str, gray.ravel())).encode())
    return found


def read(content: bytes) -> None:
    picture = read_picture(Path("a"), content)
    assert picture.color.ndim == 3
    assert picture.color.dtype in (np.uint8, np.uint16)


def main(seed: int, seconds: float) -> None:
    files = pictures()
    for content in files:
        read(content)
    fuzz.run(lambda seed: read(fuzz.damaged(files[seed % len(files)], seed)), seed, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
