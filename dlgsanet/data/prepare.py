"""`dlgsanet data`: from downloaded archives to verified data roots."""

import argparse
import sys
from pathlib import Path

from dlgsanet.errors import UserError

EXAMPLES = """examples:
  dlgsanet data folder ~/photos --name Photos          # datasets/Photos/HR and LR_bicubic/X2, X3, X4
  dlgsanet data folder ~/photos --name Photos --root /scratch/datasets --scales 4
"""


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 when an image had to be left out."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dlgsanet data",
        description="Prepare data sets for training and testing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    folder = commands.add_parser("folder", help="any folder of images")
    folder.add_argument("source", type=Path, help="folder of images (PNG, JPEG, BMP, TIFF, WebP)")
    folder.add_argument("--name", required=True, help="the set's name: its folder under the root")
    folder.add_argument("--root", type=Path, default=Path("datasets"), help="default: %(default)s")
    folder.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], metavar="S", help="default: 2 3 4")
    folder.add_argument("--workers", type=int, help="processes; default: one a core")
    folder.set_defaults(run=_folder)
    return parser


def _folder(arguments: argparse.Namespace) -> int:
    from dlgsanet.data.layout import by_stem, lay_out

    sources = by_stem(arguments.source, "SOURCE")
    outcome = lay_out(sources, arguments.root / arguments.name, arguments.scales, arguments.workers)
    print(
        f"{outcome.root}: {outcome.images} images, {outcome.megapixels:.1f} Mpixel; "
        f"{outcome.written} files written, {outcome.found} were there"
    )
    for line in outcome.skipped:
        print(f"skipped {line}", file=sys.stderr)
    if outcome.skipped:
        raise UserError(
            f"{len(outcome.skipped)} of {len(sources)} images of {arguments.source} were skipped, see above"
        )
    return 0
