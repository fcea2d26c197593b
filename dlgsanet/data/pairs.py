"""Which GT image goes with which LQ image: in two folders, by a meta-info file, or in two LMDB data bases.

The rules are those of BasicSR's `PairedImageDataset`, so that its options mean the same here, but that the two images
of a pair may differ in their format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlgsanet.data.images import list_images
from dlgsanet.data.lmdb_images import lmdb_images
from dlgsanet.data.sources import Source, file_source
from dlgsanet.errors import UserError


def find_pairs(opt: Mapping[str, Any]) -> list[tuple[Source, Source]]:
    """(GT, LQ) for every image that the options of a data set name, by name.

    Reads `dataroot_gt`, `dataroot_lq`, `io_backend`, `filename_tmpl` and `meta_info_file`.

    Raises:
        UserError: an option is missing, or images are; all missing images are counted and the first named.
    """
    gt_root, lq_root = _root(opt, "dataroot_gt"), _root(opt, "dataroot_lq")
    backend = opt.get("io_backend", {}).get("type", "disk")
    if backend == "lmdb":
        return _lmdb_pairs(gt_root, lq_root)
    if backend != "disk":
        raise UserError(f"io_backend: type must be disk or lmdb, not {backend!r}")
    if opt.get("meta_info_file"):
        gt_files = _named_in(Path(opt["meta_info_file"]), gt_root)
    else:
        gt_files = list_images(gt_root, "dataroot_gt")
    template = opt.get("filename_tmpl", "{}")
    lq_files = {path.stem: path for path in list_images(lq_root, "dataroot_lq")}
    wanted = [template.format(gt_file.stem) for gt_file in gt_files]
    missing = [name for name in wanted if name not in lq_files]
    if missing:
        raise UserError(
            f"dataroot_lq, filename_tmpl: {len(missing)} of {len(wanted)} LQ images are not in {lq_root}, "
            f"first {missing[0]}"
        )
    unpaired = sorted(set(lq_files) - set(wanted))
    if unpaired and not opt.get("meta_info_file"):
        raise UserError(f"dataroot_gt: {len(unpaired)} images of {lq_root} have none in {gt_root}, first {unpaired[0]}")
    return [(file_source(gt), file_source(lq_files[name])) for gt, name in zip(gt_files, wanted, strict=True)]


def _root(opt: Mapping[str, Any], option: str) -> Path:
    if not opt.get(option):
        raise UserError(f"{option}: missing from the options of data set {opt.get('name', '')!r}")
    return Path(opt[option])


def _named_in(meta_info: Path, root: Path) -> list[Path]:
    """The images that a meta-info file names, one a line: `0001_s001.png (480,480,3)`."""
    try:
        lines = meta_info.read_text().splitlines()
    except OSError as error:
        raise UserError(f"meta_info_file: cannot read {meta_info}: {error.strerror}") from None
    files = [root / line.split(" ")[0] for line in lines if line.strip()]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        what = f"{len(missing)} of its {len(files)} images are missing, first {missing[0]}" if missing else "empty"
        raise UserError(f"meta_info_file: {meta_info}: {what}")
    return files


def _lmdb_pairs(gt_root: Path, lq_root: Path) -> list[tuple[Source, Source]]:
    gt_images, lq_images = lmdb_images(gt_root, "dataroot_gt"), lmdb_images(lq_root, "dataroot_lq")
    unpaired = sorted(set(gt_images) ^ set(lq_images))
    if unpaired:
        raise UserError(f"{len(unpaired)} keys are in one of {gt_root} and {lq_root} alone, first {unpaired[0]!r}")
    return [(gt_images[key], lq_images[key]) for key in sorted(gt_images)]
