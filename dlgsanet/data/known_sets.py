"""The data sets of the field: what they hold, where they come from and how to find their originals in an archive."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlgsanet.data.sources import Source, images_by_folder
from dlgsanet.errors import UserError


@dataclass(frozen=True)
class KnownSet:
    """`parts` are the data roots made of it, with their numbers of images; `addresses` its archives, if it has any."""

    title: str
    parts: dict[str, int]
    addresses: tuple[str, ...]
    source: str


# PSNR in dB of bicubic upscaling at x2, x3, x4, on Y, from the tables of RCAN (Zhang et al., ECCV 2018). They were
# computed in MATLAB, which reads a gray image (Set14's `bridge`) as 1 channel and rounds Y to whole levels.
PUBLISHED_BICUBIC = {
    "Set5": {2: 33.66, 3: 30.39, 4: 28.42},
    "Set14": {2: 30.24, 3: 27.55, 4: 26.00},
    "B100": {2: 29.56, 3: 27.21, 4: 25.96},
    "Urban100": {2: 26.88, 3: 24.46, 4: 23.14},
    "Manga109": {2: 30.80, 3: 26.95, 4: 24.89},
}

# The authors of EDSR gave the test sets the form in which the field measures on them.
_EDSR = ("https://cv.snu.ac.kr/research/EDSR/benchmark.tar",)
_DIV2K = "http://data.vision.ee.ethz.ch/cvl/DIV2K/"

KNOWN_SETS = {
    "div2k": KnownSet(
        "DIV2K: 800 images to train on, 100 to validate",
        {"DIV2K": 800, "DIV2K_valid": 100},
        (f"{_DIV2K}DIV2K_train_HR.zip", f"{_DIV2K}DIV2K_valid_HR.zip"),
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    ),
    "set5": KnownSet("Set5: 5 images", {"Set5": 5}, _EDSR, _EDSR[0]),
    "set14": KnownSet("Set14: 14 images", {"Set14": 14}, _EDSR, _EDSR[0]),
    "b100": KnownSet("B100: the 100 test images of BSDS300", {"B100": 100}, _EDSR, _EDSR[0]),
    "urban100": KnownSet("Urban100: 100 images of buildings", {"Urban100": 100}, _EDSR, _EDSR[0]),
    "manga109": KnownSet("Manga109: 109 pages of manga", {"Manga109": 109}, (), "http://www.manga109.org/"),
}

# Folders of what others made of the originals: LR images, crops, other degradations.
_DERIVED = re.compile(r"LR|^X\d$|mod\d+|SRF_\d|bicubic|unknown|mild|wild|difficult", re.IGNORECASE)


def find_originals(known: KnownSet, archives: Sequence[Path]) -> dict[str, dict[str, Source]]:
    """For each part of the set that is in the archives (or folders): name without extension -> original.

    Raises:
        UserError: no part is there, or more than one folder may be it; the folders found are listed.
    """
    found: dict[str, dict[str, Source]] = {}
    seen: list[str] = []
    for archive in archives:
        folders = images_by_folder(archive)
        seen += [f"{archive / folder} ({len(images)})" for folder, images in folders.items()]
        for part, count in known.parts.items():
            named = {archive / folder: images for folder, images in folders.items() if len(images) == count}
            if folder := _folder_of(part, archive, named):
                found[part] = named[folder]
    if not found:
        wanted = " or ".join(f"{count} images ({part})" for part, count in known.parts.items())
        raise UserError(f"no folder with {wanted}; images found: {', '.join(seen[:10])}")
    return found


def _folder_of(part: str, archive: Path, folders: Iterable[Path]) -> Path | None:
    """The folder with a part's originals.

    Folders whose names mark derived images (LR, crops) do not count. A folder named after the part is preferred, and
    among several of them one named `HR` or `original`.
    """
    candidates = [f for f in folders if not any(_DERIVED.search(name) for name in f.relative_to(archive).parts)]
    candidates = [f for f in candidates if part in f.parts] or candidates
    candidates = [f for f in candidates if f.name in ("HR", "original")] or candidates
    if len(candidates) > 1:
        raise UserError(f"{part} may be any of {', '.join(map(str, candidates))}; name one of them")
    return candidates[0] if candidates else None
