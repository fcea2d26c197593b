"""Check a data root for what makes scores wrong: damaged or odd images, wrong pairs, LR images that were shrunk by
another rule, images that are there twice, and images that are also in another root."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dlgsanet.data.images import as_rgb, is_image_name, list_images, read_image
from dlgsanet.data.known_sets import PUBLISHED_BICUBIC
from dlgsanet.data.layout import hr_folder, lr_folder, lr_path, scales_of
from dlgsanet.data.parallel import for_each
from dlgsanet.data.resize import downscale, imresize
from dlgsanet.errors import counted
from dlgsanet.metrics.psnr_ssim import psnr
from dlgsanet.pictures.reading import UnreadableImageError, opened

THUMBNAIL = 8
# Thumbnails of one photograph, shrunk, compressed and cropped by up to 2%, correlate by 0.97 or more (29 test images);
# those of different photographs by 0.93 at most (642 training images with each other and with the 29).
ALIKE = 0.95


@dataclass
class Picture:
    """What one original and its LR images are like. `scores` has, for each scale, the PSNR in dB of bicubic upscaling
    with the image read as 3 channels and as it is."""

    path: Path
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    thumbnail: np.ndarray = field(default_factory=lambda: np.zeros((THUMBNAIL, THUMBNAIL)))
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)


def originals_of(root: Path) -> list[Path]:
    """The originals of a data root, or the images of a folder that is not laid out as one."""
    return list_images(hr_folder(root) if hr_folder(root).is_dir() else root, "ROOT")


def check_root(root: Path, workers: int | None = None) -> tuple[list[Picture], list[str]]:
    """Check all images of a data root.

    Returns:
        The originals, and one line for each fault.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    scales = scales_of(root)
    pictures, _ = for_each(partial(_check_original, root=root, scales=scales), originals_of(root), str(root), workers)
    faults = [fault for picture in pictures for fault in picture.faults]
    for scale in scales:
        expected = {lr_path(root, picture.path.stem, scale).name for picture in pictures}
        present = sorted(path for path in lr_folder(root, scale).iterdir() if is_image_name(path.name))
        faults += [f"{path}: has no original" for path in present if path.name not in expected]
    return pictures, faults + list(_twice(pictures))


def summary(root: Path, pictures: Sequence[Picture]) -> Iterable[str]:
    """What a root holds and how bicubic upscaling scores on it, line by line."""
    sizes = sorted(picture.size for picture in pictures if picture.digest)
    extent = f"{sizes[0][1]}x{sizes[0][0]} to {sizes[-1][1]}x{sizes[-1][0]}" if sizes else "none of them readable"
    yield f"{root}: {counted(len(pictures), 'original')}, {extent}"
    for scale in scales_of(root):
        scores = np.array([picture.scores[scale] for picture in pictures if scale in picture.scores])
        if not len(scores):
            continue
        colour, as_it_is = scores.mean(axis=0)
        line = f"  x{scale}: {counted(len(scores), 'pair')}, bicubic {colour:.2f} dB"
        if not np.array_equal(scores[:, 0], scores[:, 1]):
            line += f" read as 3 channels, {as_it_is:.2f} dB with gray images read as 1"
        if published := PUBLISHED_BICUBIC.get(root.name, {}).get(scale):
            line += f" (published: {published:.2f})"
        yield line


def near_duplicates(pictures: Sequence[Picture], others: Sequence[Picture]) -> list[str]:
    """One line for each image of one root that is probably also in the other: resized, compressed, mirrored, or
    cropped by a little. A small piece of a large image is not found."""
    ours, theirs = (np.stack([picture.thumbnail for picture in root]) for root in (pictures, others))
    views = np.stack([theirs, theirs[..., ::-1]])
    likeness = np.einsum("ahw, vbhw -> vab", ours, views).max(axis=0)
    return [
        f"{pictures[i].path} and {others[j].path} are the same picture (thumbnails correlate by {likeness[i, j]:.3f})"
        for i, j in np.argwhere(likeness > ALIKE)
    ]


def _check_original(path: Path, root: Path, scales: Sequence[int]) -> Picture:
    picture = Picture(path)
    image = _examine(path, picture)
    lr_images = {scale: _examine(lr_path(root, path.stem, scale), picture) for scale in scales}
    if image is None:
        return picture
    picture.size = image.shape[0], image.shape[1]
    picture.digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    picture.thumbnail = _thumbnail(image)
    for scale, lr in lr_images.items():
        if min(picture.size) < scale:
            picture.faults.append(f"{path}: {picture.size[1]}x{picture.size[0]} pixels are too few for x{scale}")
        elif lr is not None:
            _check_pair(picture, image, lr, scale, lr_path(root, path.stem, scale))
    return picture


def _examine(path: Path, picture: Picture) -> np.ndarray | None:
    """The image, or None if it cannot be used. Faults and notes about the file are added to `picture`."""
    # Pillow does not open every TIFF; what is wrong with a file is for `read_image` to say.
    with suppress(UnreadableImageError), opened(path) as header:
        held = "JPEG" if header.format == "MPO" else header.format  # a camera's JPEG with a preview behind it
        if Image.registered_extensions().get(path.suffix.lower()) != held:
            picture.faults.append(f"{path}: holds {held}, its name says otherwise")
        if header.mode not in ("L", "RGB"):
            kind = {"P": "a palette", "1": "black and white"}.get(header.mode, f"{header.mode} pixels")
            picture.notes.append(f"{path}: has {kind}")
    try:
        image = read_image(path)
    except UnreadableImageError as error:
        picture.faults.append(str(error))
        return None
    if image.ndim == 2:
        picture.notes.append(f"{path}: gray")
    return image


def _check_pair(picture: Picture, image: np.ndarray, lr: np.ndarray, scale: int, path: Path) -> None:
    image, lr, gray = as_rgb(image), as_rgb(lr), image.ndim == 2
    expected = downscale(image, scale)
    if lr.shape != expected.shape:
        sizes = f"{lr.shape[1]}x{lr.shape[0]} pixels are not 1/{scale} of {image.shape[1]}x{image.shape[0]}"
        picture.faults.append(f"{path}: {sizes} of {picture.path}")
        return
    if not np.array_equal(lr, expected):
        difference = np.abs(lr.astype(int) - expected)
        picture.faults.append(
            f"{path}: not MATLAB's bicubic of {picture.path}: {(difference > 0).mean():.1%} of the values differ, "
            f"by up to {difference.max()}"
        )
    upscaled, reference = imresize(lr, scale), image[: len(lr) * scale, : lr.shape[1] * scale]
    if min(reference.shape[:2]) > 2 * scale:
        colour = psnr(upscaled, reference, scale)
        picture.scores[scale] = colour, psnr(upscaled, reference, scale, y_channel=False) if gray else colour


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Gray `[8, 8]` of zero mean and unit norm; all zero for an almost even image, since all of these look alike."""
    small = Image.fromarray(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float64)
    values = values - values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > THUMBNAIL else np.zeros_like(values)


def _twice(pictures: Sequence[Picture]) -> Iterable[str]:
    by_digest: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        if picture.digest:
            by_digest[picture.digest].append(picture.path)
    for paths in by_digest.values():
        if len(paths) > 1:
            yield f"{' and '.join(map(str, paths))} are the same picture"
