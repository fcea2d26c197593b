"""Bounds that no real picture exceeds, so that a file of a few kilobytes cannot take gigabytes or minutes."""

import re

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs
MAX_SCANS = 64  # of a progressive JPEG; encoders write 5 to 12
SMALL = 2**27  # bytes of pixels that any file may have, however small it is
MAX_RATIO = 1100  # bytes of pixels per byte of a file above that; deflate cannot exceed 1032, JPEG 512 pixels

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within the data of a scan: neither stuffing nor RSTn
_EOI, _SOS = 0xD9, 0xDA


def excess(width: int, height: int, bytes_per_pixel: int, file_bytes: int, max_pixels: int = MAX_PIXELS) -> str | None:
    """What is wrong with the size of a picture; None: nothing.

    Args:
        width, height: in pixels.
        bytes_per_pixel: of the decoded picture.
        file_bytes: length of the file.
        max_pixels: pixels that are accepted.
    """
    pixels = width * height
    if pixels > max_pixels:
        return f"{width}x{height} pixels; at most {max_pixels / 1e6:.0f} megapixels are read"
    if pixels * bytes_per_pixel > max(SMALL, MAX_RATIO * file_bytes):
        return f"damaged; {file_bytes} bytes cannot hold {width}x{height} pixels"
    return None


def has_too_many_scans(content: bytes) -> bool:
    """Whether a JPEG file has over `MAX_SCANS` scans: each one goes over all of its pixels."""
    scans, place = 0, 2
    while match := _MARKER.search(content, place):
        kind = match[1][0]
        if kind == _EOI:
            return False
        scans += kind == _SOS
        if scans > MAX_SCANS:
            return True
        length = int.from_bytes(content[match.end() : match.end() + 2], "big")
        place = match.end() + (length if length >= 2 else 0)
    return False
