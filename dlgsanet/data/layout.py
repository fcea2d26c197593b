"""A data root as the option files expect it.

- `ROOT/HR/0001.png`: the originals, as PNG, pixels untouched;
- `ROOT/LR_bicubic/X4/0001x4.png`: cropped to a multiple of 4 and shrunk by MATLAB's rule;
- `ROOT/HR.lmdb`, `ROOT/LR_bicubic_X4.lmdb`: the same images as LMDB databases, if `dlgsanet data lmdb` made them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dlgsanet.data.images import png_bytes, read_image
from dlgsanet.data.parallel import for_each
from dlgsanet.data.resize import downscale
from dlgsanet.data.sources import Source
from dlgsanet.errors import UserError, counted
from dlgsanet.files import write_whole
from dlgsanet.pictures.reading import UnreadableImageError, opened

RECIPE = ".recipe"  # in a folder of images that are made from others


@dataclass
class Outcome:
    """What was done with the originals of one set; `skipped` has one line for each that was left out."""

    root: Path
    images: int
    pixels: int
    written: int
    found: int
    skipped: list[str]

    def __str__(self) -> str:
        extent = f"{self.pixels / 1e6:.1f} Mpixel" if self.pixels >= 100_000 else f"{self.pixels:,} pixels"
        return (
            f"{self.root}: {counted(self.images, 'image')} of {extent}; {counted(self.written, 'file')} written, "
            f"{self.found} were there, {counted(len(self.skipped), 'image')} skipped"
        )


def hr_folder(root: Path) -> Path:
    return root / "HR"


def lr_folder(root: Path, scale: int) -> Path:
    return root / "LR_bicubic" / f"X{scale}"


def hr_path(root: Path, stem: str) -> Path:
    return hr_folder(root) / f"{stem}.png"


def lr_path(root: Path, stem: str, scale: int) -> Path:
    return lr_folder(root, scale) / f"{stem}x{scale}.png"


def hr_lmdb(root: Path, sub: bool = False) -> Path:
    """The LMDB database of the originals, or of the sub-images cut from them."""
    return root / f"HR{'_sub' if sub else ''}.lmdb"


def lr_lmdb(root: Path, scale: int, sub: bool = False) -> Path:
    return root / f"LR_bicubic_X{scale}{'_sub' if sub else ''}.lmdb"


def scales_of(root: Path) -> list[int]:
    """The scales that a data root has LR images of."""
    folders = (root / "LR_bicubic").glob("X*")
    return sorted(int(folder.name[1:]) for folder in folders if folder.name[1:].isdecimal())


def check_recipe(folder: Path, how: str, again: str) -> None:
    """Check that what is in a folder was made in the same way, where that is written down (`write_recipe`).

    Raises:
        UserError: it was not; the message says how and ends with what to do, `again`.
    """
    recipe = folder / RECIPE
    if recipe.exists() and (found := recipe.read_bytes()) != f"{how}\n".encode():
        by = found.decode(errors="replace").strip()
        raise UserError(f"{folder} was made by {by}, not by {how}; {again}")


def write_recipe(folder: Path, how: str) -> None:
    """Write down how the images of a folder are made, so that a later run does not mix them with others."""
    if not (folder / RECIPE).exists():
        write_whole(folder / RECIPE, f"{how}\n".encode())


def lay_out(originals: Mapping[str, Source], root: Path, scales: Sequence[int], workers: int | None = None) -> Outcome:
    """Write the HR and LR images of `originals` (name without extension -> image) that `root` does not have yet.

    Raises:
        UserError: `root` cannot be written, or has another image of the same name.
    """
    work = partial(_lay_out_one, root=root, scales=scales)
    results, skipped = for_each(work, list(originals.items()), root.name, workers)
    written = sum(files for files, _ in results)
    return Outcome(
        root,
        images=len(results),
        pixels=sum(pixels for _, pixels in results),
        written=written,
        found=len(results) * (1 + len(scales)) - written,
        skipped=skipped,
    )


def _lay_out_one(original: tuple[str, Source], root: Path, scales: Sequence[int]) -> tuple[int, int]:
    """Returns how many files were written, and the pixels of the HR image."""
    stem, source = original
    hr_size = _size_of(hr_path(root, stem))
    if hr_size and all(_lr_is_there(root, stem, scale, hr_size) for scale in scales):
        return 0, hr_size[0] * hr_size[1]
    content = source.read()
    image = read_image(Path(source.name), content)
    height, width = image.shape[:2]
    if min(height, width) < max(scales):
        raise UnreadableImageError(f"{source.name}: {width}x{height} pixels are too few to shrink by {max(scales)}")
    if hr_size and hr_size != (height, width):
        raise UserError(f"{hr_path(root, stem)} is not of the size of {source.name}; remove it if it is out of date")
    if hr_size and not np.array_equal(read_image(hr_path(root, stem)), image):
        raise UserError(f"{hr_path(root, stem)} is another picture than {source.name}; remove it if it is out of date")
    # Without an HR image, those that are there are of another one.
    missing = [scale for scale in scales if not _lr_is_there(root, stem, scale, (height, width)) or not hr_size]
    if not hr_size:
        write_whole(hr_path(root, stem), content if _is_plain_png(source, content) else png_bytes(image))
    for scale in missing:
        write_whole(lr_path(root, stem, scale), png_bytes(downscale(image, scale)))
    return len(missing) + (not hr_size), height * width


def _is_plain_png(source: Source, content: bytes) -> bool:
    """Whether the file can be kept as it is: any reader gets from it the pixels that `read_image` does."""
    with opened(Path(source.name), content) as header:
        plain = header.mode in ("L", "RGB") and not header.has_transparency_data and not header.getexif()
        return header.format == "PNG" and plain


def _lr_is_there(root: Path, stem: str, scale: int, hr_size: tuple[int, int]) -> bool:
    path, size = lr_path(root, stem, scale), _size_of(lr_path(root, stem, scale))
    if size and size != (hr_size[0] // scale, hr_size[1] // scale):
        raise UserError(f"{path} is not 1/{scale} of {hr_path(root, stem)}; remove it if it is out of date")
    return size is not None


def _size_of(path: Path) -> tuple[int, int] | None:
    """(height, width) by the header, None if there is no such file."""
    if not path.exists():
        return None
    try:
        with opened(path) as image:
            return image.height, image.width
    except UnreadableImageError as error:
        raise UserError(f"{error}; remove it") from None
