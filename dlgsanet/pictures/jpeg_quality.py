"""The quality with which a JPEG file was compressed, read from its quantisation tables."""

from collections.abc import Iterable

LOW_QUALITY = 85  # up to this, blocks and ringing are visible in the upscaled picture

# Luminance table of quality 50: ITU-T T.81 (1992), table K.1. libjpeg scales it for the other qualities.
_QUALITY_50 = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def _sum_of_table(quality: int) -> int:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * percent + 50) // 100, 1), 255) for value in _QUALITY_50)


_SUMS = {quality: _sum_of_table(quality) for quality in range(1, 101)}


def jpeg_quality(luminance: Iterable[int]) -> int:
    """The quality, 1 to 100 as libjpeg counts it. For other encoders, the quality that is about as coarse.

    Args:
        luminance: the 64 values of the quantisation table, in any order.
    """
    total = sum(luminance)
    return min(_SUMS, key=lambda quality: abs(_SUMS[quality] - total))
