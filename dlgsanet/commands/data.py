"""`dlgsanet data`: download, prepare, check and store data sets. The work is in `dlgsanet.data`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, file_of, part_of_name, whole_number
from dlgsanet.data.known_sets import KNOWN_SETS, KnownSet
from dlgsanet.data.layout import hr_folder, hr_lmdb, lr_folder, lr_lmdb
from dlgsanet.errors import UserError, counted, unknown

DEFAULT_SCALES = (2, 3, 4)
EXAMPLES = """examples:
  dlgsanet data div2k                           download it: datasets/DIV2K
  dlgsanet data div2k DIV2K_train_HR.zip        from an archive or folder
  dlgsanet data set14 benchmark.tar --root /scratch/datasets --scales 4
  dlgsanet data folder ~/photos --name Mine     your own: datasets/Mine
  dlgsanet data check datasets/DIV2K --against datasets/Set5 datasets/Set14
  dlgsanet data subimages datasets/DIV2K        pieces for PairedImageDataset
  dlgsanet data lmdb datasets/DIV2K --scales 2  HR.lmdb, LR_bicubic_X2.lmdb
  dlgsanet data meta-info datasets/DIV2K/HR meta.txt
  dlgsanet data sheet -opt FILE.yml             samples: results/sheet.png

Data roots are laid out as the option files expect them: NAME/HR/0001.png and
NAME/LR_bicubic/X4/0001x4.png.
A command that was interrupted, or is run again, does only what is missing."""


def main(argv: list[str]) -> int:
    """Run a subcommand. Images that cannot be used are reported together, after the work on all others."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="dlgsanet data",
        description="Prepare, check and store data sets.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, scales: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        if scales:
            added.add_argument("--scales", type=whole_number(2), nargs="+", metavar="S", help=f"default: {scales}")
        added.add_argument("--workers", type=whole_number(), metavar="N", help="threads; default: one for each core")
        return added

    for name, known in KNOWN_SETS.items():
        known_set = command(name, _known_set, known.title, "2 3 4")
        known_set.set_defaults(known=known)
        fetched = "downloaded if left out" if known.addresses else f"from {known.source}"
        known_set.add_argument("source", type=Path, nargs="*", metavar="SOURCE",
            help=f"archives or folders with the originals; {fetched}")  # fmt: skip
        _add_root(known_set)
    folder = command("folder", _folder, "any folder or archive of images", "2 3 4")
    folder.add_argument("source", type=Path, metavar="SOURCE", help="a folder, ZIP or tar of PNG, JPEG, BMP, TIFF or "
        "WebP images; folders inside it are left out if it has images of its own")  # fmt: skip
    folder.add_argument("--name", type=part_of_name, required=True, help="of the set: its folder under the root")
    _add_root(folder)

    check = command("check", _check, "open every image, check pairs, look for duplicates")
    check.add_argument("data_roots", type=Path, nargs="+", metavar="ROOT", help="data roots, or folders of images")
    check.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="ROOT",
        help="roots that must not contain a picture of ROOT",
    )

    subimages = command("subimages", _subimages, "cut HR and LR images into pieces", "those that ROOT has")
    subimages.add_argument("data_root", type=Path, metavar="ROOT")
    for option, least, default, text in (
        ("size", 1, 480, "side of a piece"),
        ("step", 1, 240, "distance between the starts of two pieces"),
        ("threshold", 0, 0, "one more piece ends at the border if more than this is left there"),
    ):
        subimages.add_argument(
            f"--{option}", type=whole_number(least), default=default, help=f"{text}, in HR pixels; default: {default}"
        )

    lmdb = command("lmdb", _lmdb, "store HR and LR images for BasicSR's io_backend lmdb", "those that ROOT has")
    lmdb.add_argument("data_root", type=Path, metavar="ROOT")
    lmdb.add_argument("--sub", action="store_true", help="the pieces that `subimages` cut, not whole images")

    meta_info = command("meta-info", _meta_info, "list the images of a folder with their sizes")
    meta_info.add_argument("folder", type=Path, metavar="FOLDER")
    meta_info.add_argument("target", type=Path, metavar="FILE", help="the file to write, for meta_info_file")

    sheet = command("sheet", _sheet, "draw the first samples of a training set, to look at")
    sheet.add_argument("-opt", required=True, metavar="FILE", help="option file for training")
    sheet.add_argument("--force-yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="change options of the file")
    sheet.add_argument("--data-root", metavar="DIR", help="folder that stands for `datasets/` in the file's data roots")
    sheet.add_argument("--samples", type=whole_number(1, 1000), default=32, metavar="N", help="default: %(default)s")
    sheet.add_argument("--epoch", type=whole_number(0), default=0, metavar="N", help="default: %(default)s")
    sheet.add_argument(
        "-o",
        "--output",
        type=file_of(".png"),
        default=Path("results/sheet.png"),
        metavar="PNG",
        help="default: %(default)s",
    )
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, default=Path("datasets"), help="where data roots are; default: %(default)s"
    )


def _known_set(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.known_sets import find_originals
    from dlgsanet.data.layout import lay_out

    archives = arguments.source or _downloaded(arguments.known, arguments.root / "archives")
    parts = find_originals(arguments.known, archives)
    outcomes = [
        lay_out(originals, arguments.root / part, arguments.scales or DEFAULT_SCALES, arguments.workers)
        for part, originals in parts.items()
    ]
    return _report([str(outcome) for outcome in outcomes], [line for outcome in outcomes for line in outcome.skipped])


def _downloaded(known: KnownSet, folder: Path) -> list[Path]:
    from dlgsanet.data.download import download

    if not known.addresses:
        raise UserError(f"SOURCE: there is no public archive to download; get the images from {known.source}")
    archives = []
    for address in known.addresses:
        archives.append(folder / address.rsplit("/", 1)[1])
        if not archives[-1].exists():
            download(address, archives[-1])
    return archives


def _folder(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.layout import lay_out
    from dlgsanet.data.sources import images_of

    root, scales = arguments.root / arguments.name, arguments.scales or DEFAULT_SCALES
    outcome = lay_out(images_of(arguments.source), root, scales, arguments.workers)
    return _report([str(outcome)], outcome.skipped)


def _check(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.check import Picture, check_root, near_duplicates, summary

    lines: list[str] = []
    faults: list[str] = []

    def examine(root: Path, notes: bool) -> list[Picture]:
        try:
            pictures, found = check_root(root, arguments.workers)
        except UserError as error:
            faults.append(str(error))
            return []
        lines.extend(summary(root, pictures))
        lines.extend(f"note: {note}" for picture in pictures for note in picture.notes if notes)
        faults.extend(found)
        return pictures

    checked = [examine(root, notes=True) for root in arguments.data_roots]
    if not any(checked):
        raise UserError("\n".join(faults))
    for root in arguments.against:
        others = examine(root, notes=False)
        for pictures in checked:
            faults += near_duplicates(pictures, others) if pictures and others else []
    return _report(lines, faults, "faults")


def _subimages(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.layout import scales_of
    from dlgsanet.data.subimages import Recipe, cut, sub_folders

    root, scales = arguments.data_root, arguments.scales or scales_of(arguments.data_root)
    recipe = Recipe(arguments.size, arguments.step, arguments.threshold)
    pieces, skipped = cut(root, scales, recipe, arguments.workers)
    return _report([f"{folder}: {counted(pieces, 'piece')}" for folder in sub_folders(root, scales).values()], skipped)


def _lmdb(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.layout import scales_of
    from dlgsanet.data.storage import write_lmdb
    from dlgsanet.data.subimages import sub_folders

    root, scales = arguments.data_root, arguments.scales or scales_of(arguments.data_root)
    folders = sub_folders(root, scales) if arguments.sub else _whole_folders(root, scales)
    if absent := [folder for folder in folders.values() if not folder.is_dir()]:
        cut = "; `dlgsanet data subimages` cuts them, --scales names those that there are" if arguments.sub else ""
        raise UserError(f"ROOT: there is no folder {absent[0]}{cut}")
    for scale, folder in folders.items():
        target = hr_lmdb(root, arguments.sub) if scale == 1 else lr_lmdb(root, scale, arguments.sub)
        if target.exists():
            print(f"{target}: is there already")
            continue
        suffix = "" if scale == 1 or arguments.sub else f"x{scale}"
        print(f"{target}: {counted(write_lmdb(folder, target, suffix, arguments.workers), 'image')}")
    return 0


def _whole_folders(root: Path, scales: Sequence[int]) -> dict[int, Path]:
    return {1: hr_folder(root)} | {scale: lr_folder(root, scale) for scale in scales}


def _meta_info(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.storage import write_meta_info

    count = write_meta_info(arguments.folder, arguments.target, arguments.workers)
    print(f"{arguments.target}: {counted(count, 'image')}")
    return 0


def _sheet(arguments: argparse.Namespace) -> int:
    import dlgsanet.plugin  # noqa: F401, I001  # first: it registers the data sets, and BasicSR needs it
    from basicsr.data import build_dataset

    from dlgsanet.data.images import png_bytes
    from dlgsanet.data.sheet import sheet_of_samples
    from dlgsanet.files import write_whole
    from dlgsanet.options.read import read_options

    file = {"changes": arguments.force_yml, "data_root": arguments.data_root}
    options = read_options(arguments.opt, True, **file, hardware=False)
    opt = options["datasets"]["train"]
    types = ("CachedPairedImageDataset", "DegradedPairedImageDataset")
    if opt["type"] not in types:
        raise UserError(f"datasets.train.type: {unknown('type', opt['type'], types)}")
    write_whole(arguments.output, png_bytes(sheet_of_samples(build_dataset(opt), arguments.samples, arguments.epoch)))
    print(f"{arguments.output}: each low-quality crop next to its original")
    return 0


def _report(lines: list[str], complaints: list[str], kind: str = "images skipped") -> int:
    """Print what was done, then every fault.

    Raises:
        UserError: there are complaints.
    """
    print("\n".join(lines))
    for line in complaints:
        print(line, file=sys.stderr)
    if complaints:
        raise UserError(f"{kind}: {len(complaints)}, listed above")
    return 0
