"""Bounds that no real picture exceeds, so that a file of a few kilobytes cannot take gigabytes or minutes."""

import re
from collections.abc import Iterator

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs
MAX_SCANS = 64  # of a progressive JPEG; encoders write 5 to 12
LARGEST_FILE = 1 << 31  # bytes; a ZIP of kilobytes can hold a member of gigabytes, and a device has no end
LARGEST_FACTOR = 64  # from a picture to its result
SMALL = 2**27  # bytes of pixels that any file may have, however small it is
MAX_RATIO = 1100  # bytes of pixels per byte of a file above that; deflate cannot exceed 1032, JPEG 512 pixels

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within the data of a scan: neither stuffing nor RSTn
_EOI, _SOS = 0xD9, 0xDA
_SOF = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the headers of frames: baseline, progressive, lossless ...


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
        return f"{width}x{height} pixels; at most {max_pixels / 1e6:.0f} megapixels are read: cut it into parts"
    if pixels * bytes_per_pixel > max(SMALL, MAX_RATIO * file_bytes):
        return f"damaged; {file_bytes} bytes cannot hold {width}x{height} pixels"
    return None


def has_too_many_scans(content: bytes) -> bool:
    """Whether a JPEG file has over `MAX_SCANS` scans: each one goes over all of its pixels."""
    scans = 0
    for kind, _ in _markers(content):
        scans += kind == _SOS
        if scans > MAX_SCANS:
            return True
    return False


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of a JPEG file; None: it has no header."""
    for kind, place in _markers(content):
        if kind in _SOF and place + 7 <= len(content):
            height, width = content[place + 3 : place + 5], content[place + 5 : place + 7]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
    return None


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Kind of each marker of a JPEG file, and where the two bytes after it are."""
    place = 2
    while (match := _MARKER.search(content, place)) and match[1][0] != _EOI:
        yield match[1][0], match.end()
        length = int.from_bytes(content[match.end() : match.end() + 2], "big")
        place = match.end() + (length if length >= 2 else 0)
