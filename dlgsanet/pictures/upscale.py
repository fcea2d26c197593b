"""`upscale`: upscale a picture of any kind, and return the same kind. Its pixels: `upscale_pixels`."""

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import ArgumentError
from dlgsanet.files import check_can_write
from dlgsanet.inference.loading import load_model
from dlgsanet.inference.weights import DEFAULT_NAME
from dlgsanet.pictures.bounds import LARGEST_FACTOR
from dlgsanet.pictures.find_files import same_file
from dlgsanet.pictures.picture import MOST, Picture
from dlgsanet.pictures.reading import NOT_RGB, pixels_of, read_picture
from dlgsanet.pictures.tile_sizes import refuse_beyond_free
from dlgsanet.pictures.upscale_pixels import Progress, upscale_pixels
from dlgsanet.pictures.writing import check_format, write_picture

LARGEST_OVERSHOOT = 2.0  # of floating-point pixels that are still taken for a picture in [0, 1]

Image_ = TypeVar("Image_", str, Path, Image.Image, np.ndarray, Tensor)


def upscale(
    image: Image_,
    model: DLGSANet | str | Path = DEFAULT_NAME,
    *,
    output: str | Path | None = None,
    outscale: float | None = None,
    tile: str | int = "auto",
    self_ensemble: bool = False,
    progress: Progress = lambda share: None,
) -> Image_:
    """Upscale a picture.

    Args:
        image: one of

            - a path; `output` says where the result goes, and that path is returned,
            - a PIL image, gray, RGB or palette, with or without transparency, 8 bits or 16-bit gray,
            - a NumPy array [H, W] or [H, W, C], C 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8,
              uint16, or floating point in [0, 1]; of subclasses (np.matrix) only the values count,
            - a tensor [C, H, W] or [B, C, H, W], C 1 or 3, uint8 or floating point in [0, 1].
        model: what `load_model` returns, in evaluation mode, or what it takes; load it once for many pictures.
        output: for a path: the file to write, in the format of its extension; not the picture itself.
        outscale: upscale by this factor instead of the network's: its result is resized (Lanczos).
        tile: ``auto``, ``exact``, or the pixels that a tile keeps per side.
        self_ensemble: average over the 8 flips and transposes: 8 times the work, slightly better.
        progress: called with the share of the work that is done, from 0 to 1. An exception that it raises ends the
            work, and nothing is written.

    Returns:
        The same kind, of the same type, dtype, device and channels. Floating point is clipped to [0, 1]. The result of
        a palette or CMYK image is RGB. There are no gradients.

    Raises:
        UserError: unreadable or unwritable files, missing or damaged weights, too little memory.
        TypeError, ValueError: another kind of object; shapes or dtypes that are not a picture's.
    """
    if not isinstance(model, (DLGSANet, str, Path)):
        raise TypeError(f"upscale: model must be what load_model returns, or what it takes, not {type(model).__name__}")
    network = model if isinstance(model, DLGSANet) else load_model(model)
    if network.training:  # its attention would cover whole tiles, in place of TLC's windows
        raise ValueError("upscale: the model is in training mode; call model.eval() first")

    def work(picture: Picture, progress: Progress = progress) -> Picture:
        return upscale_picture(network, picture, outscale, tile, self_ensemble, progress)

    if isinstance(image, (str, Path)):
        if output is None:
            raise ValueError("upscale: a path needs output=, the file to write")
        target = Path(output)
        if same_file(Path(image), target):
            raise ArgumentError("output", f"{target} is the picture itself, which would be replaced; give another name")
        picture = read_picture(Path(image))
        check_result(network, picture, outscale, str(target), target.suffix)
        check_can_write(target)
        write_picture(work(picture), target)
        written: Any = target if isinstance(image, Path) else str(target)
        return written
    if output is not None:
        raise ValueError("upscale: output= belongs to a path; this picture is returned")
    if isinstance(image, Image.Image):
        return _to_image(work(_picture(pixels_of(image))), image)
    if isinstance(image, np.ndarray):
        native = image.dtype.newbyteorder("=")  # big-endian files give arrays of the other byte order
        pixels = work(_picture(np.asarray(image).astype(native, copy=False))).pixels.astype(image.dtype, copy=False)
        return pixels[..., 0] if image.ndim == 2 else pixels
    if isinstance(image, Tensor):
        return _through_arrays(work, image, progress)
    raise TypeError(f"upscale: takes a path, PIL image, NumPy array or tensor, not {type(image).__name__}")


def _picture(pixels: np.ndarray) -> Picture:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"upscale: an array must be [H, W] or [H, W, 1 to 4], not {list(pixels.shape)}")
    if pixels.dtype not in MOST and not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"upscale: pixels must be uint8, uint16 or floating point, not {pixels.dtype}")
    # What a resize has overshot by is clipped later; 255 as white, or NaN, is a mistake to report.
    if pixels.dtype not in MOST and not np.abs(pixels).max() <= LARGEST_OVERSHOOT:
        raise ValueError(f"upscale: floating-point pixels must lie in [0, 1]; these reach {np.abs(pixels).max():g}")
    colors = 1 if pixels.shape[2] < 3 else 3
    return Picture(pixels[..., :colors], pixels[..., -1] if pixels.shape[2] > colors else None)


def _to_image(picture: Picture, like: Image.Image) -> Image.Image:
    pixels = picture.pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    kept = {"icc_profile", "exif", "dpi"} - ({"icc_profile"} if like.mode in NOT_RGB else set())
    image.info = {k: v for k, v in like.info.items() if k in kept}
    return image


def _through_arrays(work: Callable[[Picture, Progress], Picture], image: Tensor, progress: Progress) -> Tensor:
    if image.dim() == 4:
        count = len(image)
        if count == 0:
            raise ValueError("upscale: a batch without pictures")
        parts = (lambda share, done=done: progress((done + share) / count) for done in range(count))
        return torch.stack([_through_arrays(work, one, part) for one, part in zip(image, parts, strict=True)])
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"upscale: a tensor must be [C, H, W] or [B, C, H, W], C 1 or 3, not {list(image.shape)}")
    values = image.detach().cpu()
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    result = work(_picture(values.permute(1, 2, 0).numpy()), progress).color
    return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1).to(image.device, image.dtype)


def check_result(
    network: DLGSANet, picture: Picture, outscale: float | None, name: str, extension: str
) -> tuple[int, int]:
    """(height, width) of the upscaled picture.

    Args:
        network, picture, outscale: as for `upscale_picture`.
        name, extension: as for `check_format`.

    Raises:
        UserError: the format or the free memory cannot hold it.
    """
    size = result_size(network, picture, outscale)
    check_format(name, extension, size, picture)
    _refuse_large(size, 2 * _bytes_per_pixel(picture))  # to be encoded, it is copied at least once
    return size


def _bytes_per_pixel(picture: Picture) -> int:
    return sum(array[0, 0].nbytes for array in (picture.color, picture.alpha) if array is not None)


def _refuse_large(size: tuple[int, int], bytes_per_pixel: int) -> None:
    height, width = size
    what = f"{width}x{height} pixels of the result"
    refuse_beyond_free(height * width * bytes_per_pixel, what, "free some, or enlarge it less")


def result_size(network: DLGSANet, picture: Picture, outscale: float | None) -> tuple[int, int]:
    """(height, width) of the upscaled picture."""
    factor = network.upscale if outscale is None else outscale
    if isinstance(factor, bool) or not (isinstance(factor, Real) and 0 < factor <= LARGEST_FACTOR):
        raise ArgumentError("outscale", f"{outscale!r} is not a number above 0, at most {LARGEST_FACTOR}")
    height, width = picture.size
    return max(1, round(height * factor)), max(1, round(width * factor))


def upscale_picture(
    network: DLGSANet,
    picture: Picture,
    outscale: float | None = None,
    tile: str | int = "auto",
    self_ensemble: bool = False,
    progress: Progress = lambda share: None,
) -> Picture:
    """Upscale colours and transparency. Arguments are those of `upscale`; `progress` as in `upscale_pixels`."""
    size = result_size(network, picture, outscale)
    if size != result_size(network, picture, None):
        _refuse_large(size, _bytes_per_pixel(picture) + 8)  # a channel is resized in float32, and copied
    alpha = picture.alpha
    varied = alpha is not None and alpha.min() != alpha.max()
    passes = 2 if varied else 1

    def work(pixels: np.ndarray, number: int) -> np.ndarray:
        upscaled = upscale_pixels(network, pixels, tile, self_ensemble, lambda s: progress((number + s) / passes))
        return upscaled if upscaled.shape[:2] == size else _resized(upscaled, size)

    hidden = _hidden_color(picture) if varied else None
    color = work(picture.color if hidden is None else _with_edges_continued(picture), 0)
    if alpha is not None:
        if varied:
            alpha = _with_extremes_kept(work(alpha[..., None], 1)[..., 0], alpha)
        else:
            alpha = np.full(size, alpha.flat[0], alpha.dtype)
    if hidden is not None:
        color[alpha == 0] = hidden
    return picture.with_pixels(color, alpha)


def _hidden_color(picture: Picture) -> np.ndarray | None:
    """The colour of the pixels that are wholly transparent, if all have the same: then it means nothing."""
    hidden = picture.color[picture.alpha == 0]
    return hidden[0] if len(hidden) and (hidden == hidden[0]).all() else None


def _with_edges_continued(picture: Picture) -> np.ndarray:
    """The colours, where it is wholly transparent those of the nearest pixel that is not.

    The network would mix the hidden colour into what is seen, as a fringe.
    """
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(picture.alpha == 0, return_distances=False, return_indices=True)
    return picture.color[tuple(nearest)]


def _with_extremes_kept(upscaled: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Upscaled transparency. Two pixels away from all others, what is wholly transparent or opaque stays exactly so.

    The network is off by some levels there: programs that trim a picture would find pixels that nobody sees.
    """
    from scipy.ndimage import minimum_filter

    for value in (0, MOST.get(alpha.dtype, 1)):
        inside = Image.fromarray(minimum_filter(alpha == value, 5))
        upscaled[np.asarray(inside.resize(upscaled.shape[::-1], Image.Resampling.NEAREST))] = value
    return upscaled


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] of another size (Lanczos, antialiased)."""
    most = MOST.get(pixels.dtype, 1)
    resized = np.empty((*size, pixels.shape[2]), pixels.dtype)
    for channel in range(pixels.shape[2]):
        plane = Image.fromarray(pixels[..., channel].astype(np.float32))
        values = np.array(plane.resize(size[::-1], Image.Resampling.LANCZOS))
        values.clip(0, most, out=values)
        resized[..., channel] = values.round(out=values) if most > 1 else values
    return resized
