"""A picture as people have it: colours, perhaps transparency, a colour profile and EXIF entries."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

MOST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}  # the brightest value of a channel

# Codes of ITU-T H.273 for primaries and transfer that viewers take for sRGB, BT.709's and BT.601's transfer among them.
SRGB_CODES = ((1,), (1, 6, 13))


def is_srgb(codes: Iterable[int]) -> bool:
    """Whether viewers take these codes for sRGB: those of primaries and transfer, which others may follow."""
    return all(code in fit for fit, code in zip(SRGB_CODES, codes, strict=False))


class UnfitPictureError(ValueError):
    """What is wrong with a picture, in words for the user. Decoders' own errors are of other classes."""


@dataclass(frozen=True)
class Picture:
    """An upright picture.

    Attributes:
        color: [H, W, C], C 1 (gray) or 3 (RGB): uint8, uint16, or a float type with values in [0, 1].
        alpha: [H, W] of the same type, 0 is transparent; None: opaque.
        icc_profile: what the colours mean, as the file had it; None: sRGB, as people assume.
        png_chunks: kind and content of what says so in a PNG: cICP, mDCV and cLLI; without a profile gAMA, cHRM, sRGB.
        exif: EXIF entries as a file has them; the orientation among them is "upright".
        format: of the file it came from, as Pillow names it.
        jpeg_quality: 1 to 100, of a JPEG file that it came from.
    """

    color: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str | None = None
    jpeg_quality: int | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.color.shape[0], self.color.shape[1]

    @property
    def pixels(self) -> np.ndarray:
        """[H, W, C], alpha as the last channel where there is any."""
        return self.color if self.alpha is None else np.dstack([self.color, self.alpha])

    @property
    def transparent(self) -> bool:
        """Whether a pixel is not opaque. Screenshots often have transparency that is opaque everywhere."""
        return self.alpha is not None and bool(self.alpha.min() < MOST.get(self.alpha.dtype, 1))

    @property
    def needs_png(self) -> bool:
        """Whether its colours are not those of sRGB, and only the chunk cICP of a PNG says so."""
        return not self.icc_profile and not is_srgb(dict(self.png_chunks).get(b"cICP", b""))

    def with_pixels(self, color: np.ndarray, alpha: np.ndarray | None) -> "Picture":
        """Other pixels, everything else kept."""
        return replace(self, color=color, alpha=alpha)

    def in_8_bits(self) -> "Picture":
        """The picture with 8 bits a channel, rounded."""
        if self.color.dtype == np.uint8:
            return self
        return self.with_pixels(_to_8_bits(self.color), None if self.alpha is None else _to_8_bits(self.alpha))


def is_of_gray(icc_profile: bytes) -> bool:
    """Whether a colour profile is for gray pixels, and means nothing for RGB."""
    return icc_profile[16:20] == b"GRAY"


def rgb_of_inks(inks: np.ndarray, icc_profile: bytes | None) -> np.ndarray | None:
    """CMYK pixels [H, W, 4], uint8 or uint16, as sRGB [H, W, 3] of the same type; None: without a profile of inks."""
    if not icc_profile or icc_profile[16:20] != b"CMYK":
        return None
    import imagecodecs

    srgb = imagecodecs.cms_profile("srgb")
    try:
        return imagecodecs.cms_transform(inks, icc_profile, srgb, colorspace="cmyk", outcolorspace="rgb")
    except imagecodecs.CmsError:  # it is damaged
        return None


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
