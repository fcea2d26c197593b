"""A data root as the option files expect it, made from a folder of images.

ROOT/NAME/HR/0001.png                       the images, PNG, untouched
ROOT/NAME/LR_bicubic/X4/0001x4.png          cropped to a multiple of 4 and shrunk by MATLAB's rule
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dlgsanet.data.images import (
    UnreadableImageError,
    list_images,
    opened,
    png_bytes,
    read_image,
    upright_size,
)
from dlgsanet.data.parallel import for_each
from dlgsanet.data.resize import downscale
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole


@dataclass
class Outcome:
    """What became of the images of one set: counts of files, and one line for each image left out."""

    root: Path
    images: int = 0
    written: int = 0
    found: int = 0
    megapixels: float = 0.0
    skipped: list[str] = field(default_factory=list)


def hr_path(root: Path, stem: str) -> Path:
    return root / "HR" / f"{stem}.png"


def lr_path(root: Path, stem: str, scale: int) -> Path:
    return root / "LR_bicubic" / f"X{scale}" / f"{stem}x{scale}.png"


def lay_out(sources: dict[str, Path], root: Path, scales: list[int], workers: int | None = None) -> Outcome:
    """Write the HR and LR images of `sources` (name without extension -> file) that `root` does not have yet.

    Raises:
        UserError: `root` cannot be written, or has an image of this name that is another one.
    """
    work = partial(_lay_out_one, root=root, scales=scales)
    results, skipped = for_each(work, list(sources.items()), root.name, workers)
    return Outcome(
        root,
        images=len(results),
        written=sum(written for written, _ in results),
        found=sum(1 + len(scales) - written for written, _ in results),
        megapixels=sum(pixels for _, pixels in results) / 1e6,
        skipped=skipped,
    )


def by_stem(folder: Path, option: str) -> dict[str, Path]:
    """The images of `folder` by their names without extension.

    Raises:
        UserError: no images, or two that differ in their extension alone.
    """
    images: dict[str, Path] = {}
    for path in list_images(folder, option):
        if path.stem in images:
            raise UserError(f"{option}: {images[path.stem]} and {path.name} would become one PNG; rename one")
        images[path.stem] = path
    return images


def _lay_out_one(source: tuple[str, Path], root: Path, scales: list[int]) -> tuple[int, int]:
    """Returns how many files were written, and the pixels of the HR image."""
    stem, path = source
    with opened(path) as header:
        height, width = upright_size(header)
        plain = header.format == "PNG" and header.mode in ("L", "RGB") and not header.has_transparency_data
    if min(height, width) < max(scales, default=1):
        raise UnreadableImageError(f"{path}: {width}x{height} pixels are too few to shrink by {max(scales)}")
    sizes = {scale: (height // scale, width // scale) for scale in scales}
    missing = [scale for scale in scales if not _is_there(lr_path(root, stem, scale), sizes[scale])]
    hr_missing = not _is_there(hr_path(root, stem), (height, width))
    if missing or hr_missing:
        content = path.read_bytes()
        image = read_image(path, content)
        if hr_missing:
            write_whole(hr_path(root, stem), content if plain else png_bytes(image))
        for scale in missing:
            write_whole(lr_path(root, stem, scale), png_bytes(downscale(image, scale)))
    return len(missing) + hr_missing, height * width


def _is_there(path: Path, size: tuple[int, int]) -> bool:
    if not path.exists():
        return False
    with opened(path) as image:
        if (image.height, image.width) != size:
            raise UserError(f"{path} is there already and has another size; remove it if it is out of date")
    return True
