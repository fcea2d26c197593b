"""Degradations of photographs: blur, resize, noise and JPEG in random strengths.

The steps of one round of BSRGAN (Zhang et al., ICCV 2021, https://arxiv.org/abs/2103.14006) and Real-ESRGAN (Wang et
al., ICCVW 2021, https://arxiv.org/abs/2107.10833), with mild strengths, for pictures that were shrunk and compressed
once. Blur kernels are BasicSR's; the shares of their kinds are Real-ESRGAN's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.random import RandomState
from PIL import Image

# Kind of kernel -> its share, the range of its shape beta, and whether it is equally wide in all directions.
KERNELS: dict[str, tuple[float, tuple[float, float] | None, bool]] = {
    "gaussian": (0.45, None, True),
    "anisotropic gaussian": (0.25, None, False),
    "generalized gaussian": (0.12, (0.5, 4), True),
    "anisotropic generalized gaussian": (0.03, (0.5, 4), False),
    "plateau": (0.12, (1, 2), True),
    "anisotropic plateau": (0.03, (1, 2), False),
}
RESIZES = ("area", "bilinear", "bicubic")
GRAY_SHARE = 0.4  # of the noise that is the same in all channels, as in Real-ESRGAN
MARGIN = 16  # LQ pixels around a crop that are degraded with it, and then cut off; a multiple of JPEG's blocks
BLOCK = 8


@dataclass(frozen=True)
class Degradation:
    """What is done to one picture. Lengths are in LQ pixels, so that a strength looks alike at all scales.

    Attributes:
        kernel: a key of `KERNELS`; None: no blur.
        sigmas, angle, beta: standard deviations along the kernel's axes, its turn in radians, its shape.
        factor: the picture is shrunk to so many times the LQ's size, then resized to the LQ's size; 1: shrunk at once.
        resizes: how the first and the second resize interpolate.
        noise: standard deviation at white, in levels of 8 bits; 0: none.
        poisson: whether the noise's variance is proportional to the brightness.
        gray: whether the noise is the same in all channels.
        quality: of the JPEG compression, 1 to 100; None: none.
        shift: rows and columns between the crop and JPEG's blocks.
    """

    kernel: str | None
    sigmas: tuple[float, float]
    angle: float
    beta: float
    factor: float
    resizes: tuple[str, str]
    noise: float
    poisson: bool
    gray: bool
    quality: int | None
    shift: tuple[int, int]

    def __str__(self) -> str:
        steps = []
        if self.kernel:
            steps.append(f"{self.kernel} {' x '.join(f'{sigma:.1f}' for sigma in self.sigmas)}")
        steps.append(f"{' '.join(dict.fromkeys(self.resizes))} {self.factor:.2f}")
        if self.noise:
            steps.append(f"{'gray ' * self.gray}{'poisson' if self.poisson else 'gaussian'} {self.noise:.1f}")
        if self.quality:
            steps.append(f"JPEG {self.quality}")
        return ", ".join(steps)


def draw(strengths: Mapping[str, Any], random: RandomState) -> Degradation:
    """A random degradation.

    Args:
        strengths: the section `degradations` of an option file, complete.
        random: NumPy keeps the numbers of this generator the same in all versions.
    """

    def between(name: str) -> float:
        low, high = strengths[name]
        return float(random.uniform(low, high))

    # Every number is drawn, used or not: a changed share then leaves the other choices as they were.
    blurred, noisy, compressed = (random.uniform() < strengths[f"{step}_share"] for step in ("blur", "noise", "jpeg"))
    kernel = str(random.choice(list(KERNELS), p=[share for share, _, _ in KERNELS.values()]))
    _, betas, isotropic = KERNELS[kernel]
    sigmas = between("blur_sigma"), between("blur_sigma")
    what = Degradation(
        kernel=kernel if blurred else None,
        sigmas=(sigmas[0], sigmas[0] if isotropic else sigmas[1]),
        angle=float(random.uniform(-math.pi, math.pi)),
        beta=float(random.uniform(*(betas or (1, 1)))),
        factor=between("resize_factor"),
        resizes=(str(random.choice(RESIZES)), str(random.choice(RESIZES))),
        noise=between("noise_sigma") * noisy,
        poisson=bool(random.uniform() < 0.5),
        gray=bool(random.uniform() < GRAY_SHARE),
        quality=_whole(random, *strengths["jpeg_quality"]) if compressed else None,
        shift=(_whole(random, 0, BLOCK - 1), _whole(random, 0, BLOCK - 1)),
    )
    resized = random.uniform() < strengths["resize_share"]
    return what if resized else replace(what, factor=1.0, resizes=("bicubic", "bicubic"))


def _whole(random: RandomState, low: int, high: int) -> int:
    return low + int(random.uniform() * (high - low + 1))


def degraded_crop(
    image: np.ndarray, top: int, left: int, size: int, scale: int, what: Degradation, random: RandomState
) -> np.ndarray:
    """The LQ image of a crop, as if the whole image had been degraded.

    Args:
        image: GT, uint8 RGB [3, H, W].
        top, left, size: of the crop, in LQ pixels; height and width are `size`.
        scale: GT pixels per LQ pixel.
        what: the degradation.
        random: for the noise.

    Returns:
        uint8 RGB [3, size, size].
    """
    down, right = what.shift
    first_row, first_column, side = top - MARGIN - down, left - MARGIN - right, size + 2 * MARGIN + BLOCK
    around = _region(image, first_row * scale, first_column * scale, side * scale)
    lq = degrade(around, scale, what, random)[MARGIN + down :, MARGIN + right :][:size, :size]
    return np.ascontiguousarray(lq.transpose(2, 0, 1))


def degrade(image: np.ndarray, scale: int, what: Degradation, random: RandomState) -> np.ndarray:
    """Degrade an image: uint8 RGB [scale * H, scale * W, 3] to uint8 RGB [H, W, 3]. Arguments as in `degraded_crop`."""
    height, width = (length // scale for length in image.shape[:2])
    pixels = np.float32(image) / np.float32(255)
    if what.kernel:
        pixels = cv2.filter2D(pixels, -1, _kernel(what, scale), borderType=cv2.BORDER_REFLECT_101)
    first, second = what.resizes
    if (between := tuple(max(1, round(length * what.factor)) for length in (height, width))) != (height, width):
        pixels = _resized(pixels, between, first)
    pixels = _resized(pixels, (height, width), second)
    if what.noise:
        pixels = _noisy(pixels, what, random)
    levels = np.rint(pixels.clip(0, 1) * np.float32(255)).astype(np.uint8)
    return _compressed(levels, what.quality) if what.quality else levels


def _region(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """[size, size, 3] of an image [3, H, W], which goes on as in a mirror beyond its borders."""
    rows, columns = _mirrored(image.shape[1], top, size), _mirrored(image.shape[2], left, size)
    return image[:, rows][:, :, columns].transpose(1, 2, 0)


def _mirrored(length: int, start: int, size: int) -> np.ndarray:
    place = np.arange(start, start + size) % (2 * length)
    return np.minimum(place, 2 * length - 1 - place)


def _basicsr() -> Any:
    """BasicSR's degradations; imported when they are needed, because most data sets do without."""
    import dlgsanet.basicsr_compat  # noqa: F401, I001  # first: BasicSR does not import without it
    from basicsr.data import degradations

    return degradations


def _kernel(what: Degradation, scale: int) -> np.ndarray:
    degradations = _basicsr()
    kind = str(what.kernel)
    _, betas, isotropic = KERNELS[kind]
    wide, narrow = (sigma * scale for sigma in what.sigmas)
    size = 2 * math.ceil(3 * max(wide, narrow)) + 1
    if betas is None:
        kernel = degradations.bivariate_Gaussian(size, wide, narrow, what.angle, isotropic=isotropic)
    else:
        make = (
            degradations.bivariate_plateau if kind.endswith("plateau") else degradations.bivariate_generalized_Gaussian
        )
        kernel = make(size, wide, narrow, what.angle, what.beta, isotropic=isotropic)
    return np.float32(kernel)


def _resized(pixels: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """float32 [H, W, 3] of another (height, width). Bicubic is antialiased; bilinear is not, as in Real-ESRGAN."""
    if pixels.shape[:2] == size:
        return pixels
    if how != "bicubic":
        how_in_opencv = cv2.INTER_AREA if how == "area" else cv2.INTER_LINEAR
        return cv2.resize(pixels, size[::-1], interpolation=how_in_opencv)
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(3)]
    return np.dstack([np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes])


def _noisy(pixels: np.ndarray, what: Degradation, random: RandomState) -> np.ndarray:
    shape = (*pixels.shape[:2], 1 if what.gray else 3)
    sigma = what.noise / 255
    if not what.poisson:
        return pixels + np.float32(random.standard_normal(shape) * sigma)
    photons = sigma**-2  # at white
    light = pixels.clip(0, 1).mean(axis=2, keepdims=True) if what.gray else pixels.clip(0, 1)
    return pixels + np.float32(random.poisson(light * photons) / photons) - light


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 RGB after JPEG with half the colour resolution, as cameras and the web have it.

    BasicSR's `add_jpg_compression` does the same in floating point, which OpenCV converts with a warning.
    """
    # OpenCV's order is BGR.
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))[..., ::-1]
