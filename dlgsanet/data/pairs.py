"""Which original (GT) goes with which low-resolution image (LQ): for training, validation, testing and benchmarks.

The rules are those of BasicSR's `PairedImageDataset`, so that its options mean the same here, except that the two
images of a pair may differ in format.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlgsanet.data.images import is_image_name, list_images, read_rgb
from dlgsanet.data.layout import hr_folder, hr_lmdb, lr_folder, lr_lmdb
from dlgsanet.data.lmdb_images import lmdb_images, meta_info_lines
from dlgsanet.data.parallel import for_each, in_one_line
from dlgsanet.data.sources import Source, file_source
from dlgsanet.errors import UserError, counted, reason_of, unknown
from dlgsanet.files import printable
from dlgsanet.pictures.reading import UnreadableImageError, opened, upright_size


@dataclass(frozen=True)
class Pair:
    """An original and its low-resolution image. `name`, the original's without extension, is always printable."""

    name: str
    gt: Source
    lq: Source

    def sizes(self, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of the GT and of the LQ, from the headers alone.

        Raises:
            UnreadableImageError: a header cannot be read, or the GT is not `scale` times as large as the LQ. As in
                BasicSR, up to `scale` - 1 more rows or columns are allowed; they are cropped.
        """
        gt, lq = header_size(self.gt), header_size(self.lq)
        if (gt[0] // scale, gt[1] // scale) != lq:
            raise UnreadableImageError(
                f"{self.lq.name}: {lq[1]}x{lq[0]} pixels are not 1/{scale} of {gt[1]}x{gt[0]} of {self.gt.name}"
            )
        return gt, lq

    def read(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """LQ [H, W, 3] and GT [scale * H, scale * W, 3], uint8 RGB; gray images have three equal channels.

        Raises:
            UnreadableImageError: an image cannot be read.
        """
        lq, gt = (read_rgb(Path(source.name), source.read()) for source in (self.lq, self.gt))
        return lq, gt[: len(lq) * scale, : lq.shape[1] * scale]


def header_size(source: Source) -> tuple[int, int]:
    """(height, width) of an image from its header.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    # A file on its own is opened, not read: its header is a small part of it.
    with opened(source.file if source.alone else Path(source.name), None if source.alone else source.read()) as image:
        return upright_size(image)


def find_pairs(opt: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a data set, sorted by the names of the originals; with a meta-info file in its order.

    Args:
        opt: the data set's section of an option file. `dataroot_gt` and `dataroot_lq` are folders, or, with
            `io_backend: {type: lmdb}`, LMDB databases. `filename_tmpl` is the LQ image's name for a GT image's,
            without extension: `'{}x4'` pairs `0001.png` with `0001x4.*`. `meta_info_file` names the GT images to use,
            one per line.

    Raises:
        UserError: an option, a folder or an image is missing; it counts the missing images and names the first ones.
    """
    gt_root, lq_root = _root(opt, "dataroot_gt"), _root(opt, "dataroot_lq")
    backend = (opt.get("io_backend") or {}).get("type", "disk")
    if backend not in ("disk", "lmdb"):
        raise UserError(f"io_backend.type: {unknown('backend', backend, ['disk', 'lmdb'])}")
    if backend == "lmdb":
        return _lmdb_pairs(gt_root, lq_root, opt.get("meta_info_file"))
    return _folder_pairs(gt_root, lq_root, opt.get("filename_tmpl") or "{}", opt.get("meta_info_file"))


def find_pairs_in(root: Path, scale: int) -> list[Pair]:
    """The pairs of a data root as `dlgsanet data` lays it out: its folders, or else its LMDB databases.

    Raises:
        UserError: as `find_pairs`; the message begins with `root`.
    """
    opt: dict[str, Any] = {"dataroot_gt": hr_folder(root), "dataroot_lq": lr_folder(root, scale)}
    opt["filename_tmpl"] = f"{{}}x{scale}"
    if hr_lmdb(root).is_dir() and not hr_folder(root).is_dir():
        opt = {"dataroot_gt": hr_lmdb(root), "dataroot_lq": lr_lmdb(root, scale), "io_backend": {"type": "lmdb"}}
    if absent := [folder for folder in (opt["dataroot_gt"], opt["dataroot_lq"]) if not folder.is_dir()]:
        layout = f"a test set has HR and LR_bicubic/X{scale}; `dlgsanet data` makes them"
        raise UserError(f"{root}: there is no folder {absent[0]}; {layout}")
    try:
        return find_pairs(opt)
    except UserError as error:
        raise UserError(f"{root}: {error}") from None


def refuse_other_files(opt: Mapping[str, Any]) -> None:
    """Check that BasicSR's `PairedImageDataset`, which takes every file that is not hidden, finds images alone.

    Raises:
        UserError: there are other files in the folders; it names the first ones.
    """
    if (opt.get("io_backend") or {}).get("type", "disk") != "disk" or opt.get("meta_info_file"):
        return
    for option in ("dataroot_gt", "dataroot_lq"):
        files = (path for path in _root(opt, option).iterdir() if path.is_file() and not path.name.startswith("."))
        if others := sorted(printable(path.name) for path in files if not is_image_name(path.name)):
            raise UserError(
                f"{option}: {opt[option]} has files that are no images, which PairedImageDataset does not skip; remove "
                f"them, or set type: CachedPairedImageDataset: {in_one_line(others)}"
            )


def refuse_other_pairs(pairs: Sequence[Pair], read: Iterable[str]) -> None:
    """Check that BasicSR's `PairedImageDataset` reads the pairs that `find_pairs` found.

    It takes blank lines of a meta-info file for images, and ignores the file where images are in LMDB databases.

    Args:
        pairs: as `find_pairs` returns them.
        read: names of the originals that it reads, or their paths.

    Raises:
        UserError: it reads others; the message counts them.
    """
    names, ours = [printable(Path(name).stem) for name in read], [pair.name for pair in pairs]
    if sorted(names) != sorted(ours):
        raise UserError(
            f"meta_info_file, dataroot_gt: PairedImageDataset reads {counted(len(names), 'image')}, but {len(ours)} "
            "named: it counts empty lines, and reads no meta_info_file with LMDB; set type: CachedPairedImageDataset"
        )


def refuse_other_sizes(pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]], scale: int) -> None:
    """Check that every GT is exactly `scale` times as large as its LQ, as BasicSR's `PairedImageDataset` needs it.

    Args:
        pairs, sizes: as `find_pairs` and `check_sizes` return them.
        scale: of the data set.

    Raises:
        UserError: some are larger; it names the first ones.
    """
    both = zip(pairs, sizes[::2], sizes[1::2], strict=True)
    if others := [pair.gt.name for pair, gt, lq in both if gt != (scale * lq[0], scale * lq[1])]:
        raise UserError(
            f"{len(others)} of {counted(len(pairs), 'original')} not exactly {scale} times as large as the LQ image, "
            f"which PairedImageDataset needs in training; set type: CachedPairedImageDataset: {in_one_line(others)}"
        )


def check_sizes(pairs: Sequence[Pair], scale: int, lq_size: int = 1) -> list[tuple[int, int]]:
    """Check that the sizes of every pair fit, from the headers.

    Args:
        pairs: as `find_pairs` returns them.
        scale: height and width of the GT over those of the LQ; rows and columns beyond a multiple of it do not count.
        lq_size: the smallest height and width that the LQ may have.

    Returns:
        (height, width) of every image: GT, LQ, GT, LQ, ...

    Raises:
        UserError: pairs that cannot be read or do not fit; it counts them and names the first ones.
    """

    def sizes(pair: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
        gt, lq = pair.sizes(scale)
        if min(lq) < lq_size:
            raise UnreadableImageError(f"{pair.gt.name} is {gt[1]}x{gt[0]}, smaller than gt_size")
        return gt, lq

    found, faults = for_each(sizes, pairs, "reading headers")
    if faults:
        raise UserError(f"{len(faults)} of {counted(len(pairs), 'pair')} cannot be used: {in_one_line(faults)}")
    return [size for both in found for size in both]


def check_metrics(metrics: Mapping[str, Callable[..., float]], smallest: Pair, scale: int) -> None:
    """Try the metrics of `val.metrics` on the smallest pair of a data set, before work begins.

    Args:
        metrics: functions of two images, uint8 [H, W, 3].
        smallest: the pair.
        scale: of the data set.

    Raises:
        UserError: a metric needs larger images.
    """
    gt = smallest.read(scale)[1]
    for name, metric in metrics.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value, reason = metric(gt, gt), ""
        except Exception as error:  # metrics raise many kinds for images that are too small
            value, reason = math.nan, f" ({reason_of(error, 100)})"
        if math.isnan(value):
            raise UserError(
                f"{smallest.gt.name}: val.metrics.{name} cannot be computed on its {gt.shape[1]}x{gt.shape[0]} pixels"
                f"{reason}; remove the metric or the small images"
            )


def _root(opt: Mapping[str, Any], option: str) -> Path:
    if not opt.get(option):
        raise UserError(f"{option}: missing from the options of data set {opt.get('name', '')!r}")
    return Path(opt[option])


def _folder_pairs(gt_root: Path, lq_root: Path, template: str, meta_info: str | None) -> list[Pair]:
    gt_files = _named_in(Path(meta_info), gt_root) if meta_info else list_images(gt_root, "dataroot_gt")
    by_stem(gt_files, "dataroot_gt")
    lq_files = by_stem(list_images(lq_root, "dataroot_lq"), "dataroot_lq")
    try:
        wanted = [template.format(gt_file.stem) for gt_file in gt_files]
    except (ValueError, LookupError, AttributeError):
        raise UserError(f"filename_tmpl: {template!r} is not a template; write it as '{{}}x4'") from None
    if missing := [printable(f"{name}.png") for name in wanted if name not in lq_files]:
        raise UserError(
            f"dataroot_lq, filename_tmpl: {len(missing)} of {counted(len(wanted), 'LQ image')} not in {lq_root}: "
            + in_one_line(missing)
        )
    unpaired = sorted(map(printable, set(lq_files) - set(wanted)))
    if unpaired and not meta_info:
        raise UserError(
            f"dataroot_gt: {counted(len(unpaired), 'image')} of {lq_root} without an original in {gt_root}: "
            + in_one_line(unpaired)
        )
    return [
        Pair(printable(gt.stem), file_source(gt), file_source(lq_files[name]))
        for gt, name in zip(gt_files, wanted, strict=True)
    ]


def by_stem(files: Sequence[Path], option: str, suffix: str = "") -> dict[str, Path]:
    """The files by their names without extension, and without a suffix.

    Raises:
        UserError: two have the same name; the message names `option`.
    """
    found: dict[str, Path] = {}
    for file in files:
        if (twin := found.setdefault(file.stem.removesuffix(suffix), file)) != file:
            raise UserError(f"{option}: {twin} and {file} have the same name without extension; rename one of them")
    return found


def _named_in(meta_info: Path, root: Path) -> list[Path]:
    files = [root / name for name in _names_in(meta_info)]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        count = f"{len(missing)} of its {counted(len(files), 'image')}"
        what = f"{count} missing: {in_one_line(missing)}" if missing else "empty"
        raise UserError(f"meta_info_file: {meta_info}: {what}")
    return files


def _names_in(meta_info: Path) -> list[str]:
    """The images that a meta-info file names, one per line: `0001_s001.png (480,480,3)`."""
    counts = Counter(line.split(" ")[0] for line in meta_info_lines(meta_info, "meta_info_file"))
    if repeated := sorted(printable(name) for name, count in counts.items() if count > 1):
        raise UserError(f"meta_info_file: {meta_info}: names images more than once: {in_one_line(repeated)}")
    return [*counts]


def _lmdb_pairs(gt_root: Path, lq_root: Path, meta_info: str | None) -> list[Pair]:
    gt_images, lq_images = lmdb_images(gt_root, "dataroot_gt"), lmdb_images(lq_root, "dataroot_lq")
    if unpaired := sorted(set(gt_images) ^ set(lq_images)):
        raise UserError(
            f"dataroot_gt, dataroot_lq: {counted(len(unpaired), 'key')} in only one of {gt_root} and {lq_root}: "
            + in_one_line(unpaired)
        )
    keys = sorted(gt_images)
    if meta_info:
        keys = [Path(name).stem for name in _names_in(Path(meta_info))]
        if missing := [key for key in keys if key not in gt_images]:
            raise UserError(
                f"meta_info_file: {len(missing)} of its {counted(len(keys), 'image')} not in {gt_root}: "
                + in_one_line(missing)
            )
    return [Pair(key, gt_images[key], lq_images[key]) for key in keys]
