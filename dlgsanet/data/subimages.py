"""Sub-images: overlapping pieces of large originals, which BasicSR's `PairedImageDataset` reads faster than the whole.

The recipe is BasicSR's for DIV2K: pieces of 480x480 pixels, one every 240 pixels. If more than a threshold of pixels
would be left over at the border, one more piece ends there. `0001_s001.png` is the first piece of `0001.png`; HR and LR
pieces have the same names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path

from dlgsanet.data.images import list_images, png_bytes, read_image
from dlgsanet.data.layout import check_recipe, hr_folder, lr_path, write_recipe
from dlgsanet.data.pairs import by_stem
from dlgsanet.data.parallel import for_each
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from dlgsanet.pictures.reading import UnreadableImageError


@dataclass(frozen=True)
class Recipe:
    """How sub-images are cut, in pixels of the HR image."""

    size: int = 480
    step: int = 240
    threshold: int = 0

    def starts(self, length: int) -> list[int]:
        """Where pieces begin along an axis; none if it is too short for one."""
        starts = list(range(0, length - self.size + 1, self.step))
        if starts and length - (starts[-1] + self.size) > self.threshold:
            starts.append(length - self.size)
        return starts


def sub_folders(root: Path, scales: Sequence[int]) -> dict[int, Path]:
    """Where the pieces of a data root go: scale -> folder, scale 1 for HR."""
    return {1: root / "HR_sub"} | {scale: root / "LR_bicubic" / f"X{scale}_sub" for scale in scales}


def cut(root: Path, scales: Sequence[int], recipe: Recipe, workers: int | None = None) -> tuple[int, list[str]]:
    """Cut the HR and LR images of a data root.

    Returns:
        How many pieces each scale has, and one line for each image that was left out.

    Raises:
        UserError: the recipe does not divide by the scales, `root` has no images or cannot be written.
    """
    for value, name in ((recipe.size, "--size"), (recipe.step, "--step")):
        if value < 1 or value % lcm(*scales):
            raise UserError(f"{name}: must be a multiple of every scale, of {lcm(*scales)}, not {value}")
    originals = list_images(hr_folder(root), "ROOT")
    by_stem(originals, "ROOT")
    for folder in sub_folders(root, scales).values():
        # The scales are part of it: the last pieces of HR end where the images of all scales do.
        how = f"{recipe}, in images cropped to multiples of {lcm(*scales)}"
        check_recipe(folder, how, "remove it, and cut all scales at once")
        write_recipe(folder, how)
    pieces, skipped = for_each(
        partial(_cut_one, root=root, scales=scales, recipe=recipe), originals, "cutting", workers
    )
    return sum(pieces), skipped


def _cut_one(original: Path, root: Path, scales: Sequence[int], recipe: Recipe) -> int:
    images = {1: read_image(original)} | {s: read_image(lr_path(root, original.stem, s)) for s in scales}
    # Without the last rows and columns that no scale's LR image shows, so that all pieces begin on whole LR pixels.
    height, width = (length - length % lcm(*scales) for length in images[1].shape[:2])
    for scale, image in images.items():
        if min(image.shape[0] * scale - height, image.shape[1] * scale - width) < 0:
            raise UnreadableImageError(f"{lr_path(root, original.stem, scale)} is not 1/{scale} of {original}")
    places = [(top, left) for top in recipe.starts(height) for left in recipe.starts(width)]
    if not places:
        raise UnreadableImageError(f"{original}: {width}x{height} pixels are too few for {recipe.size}x{recipe.size}")
    folders = sub_folders(root, scales)
    for number, (top, left) in enumerate(places, start=1):
        for scale, image in images.items():
            path = folders[scale] / f"{original.stem}_s{number:03d}.png"
            if not path.exists():
                size = recipe.size // scale
                piece = image[top // scale :, left // scale :][:size, :size]
                write_whole(path, png_bytes(piece, compress_level=1))
    return len(places)
