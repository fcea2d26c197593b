"""`dlgsanet explain`: attribution maps, what SparseGSA keeps, MHDLSA's filters."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlgsanet.commands.arguments import ArgumentParser, add_import, file_of, whole_number
from dlgsanet.errors import UserError, within
from dlgsanet.files import check_can_write

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from dlgsanet.evaluation.entries import Entry

EXAMPLES = """examples:
  dlgsanet explain lam weights/*_x4.safetensors edsr_x4.yml \\
    --image butterflyx4.png --at 120 88
  dlgsanet explain kept weights/DLGSANet_Tiny_x4.safetensors \\
    --image butterflyx4.png
  dlgsanet explain filters weights/DLGSANet_Tiny_x4.safetensors \\
    --image butterflyx4.png --points 20,30 41,12
"""


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    check_can_write(arguments.output)
    arguments.run(arguments)
    print(arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="dlgsanet explain",
        description="Look into networks: each command draws a picture.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    lam = commands.add_parser("lam", help="local attribution maps with the diffusion index, of any networks")
    lam.add_argument("networks", nargs="+", metavar="[NAME=]FILE", help="weights of a DLGSANet, or test option files")
    lam.add_argument(
        "--at",
        type=whole_number(0),
        nargs=2,
        metavar=("X", "Y"),
        help="left and top of the window in output pixels; default: in the centre",
    )
    lam.add_argument(
        "--window", type=whole_number(2), default=16, help="side of the window in output pixels; default: 16"
    )
    lam.add_argument(
        "--steps",
        type=whole_number(),
        default=50,
        help="points on the path from the blurred image to the image; default: 50",
    )
    lam.set_defaults(run=_lam)

    kept = commands.add_parser("kept", help="the share of similarities that SparseGSA keeps, per layer and head")
    kept.add_argument("network", metavar="FILE", help="weights of a DLGSANet")
    kept.set_defaults(run=_kept)

    filters = commands.add_parser("filters", help="MHDLSA's filters at chosen pixels")
    filters.add_argument("network", metavar="FILE", help="weights of a DLGSANet")
    filters.add_argument(
        "--points", nargs="+", type=_point, required=True, metavar="X,Y", help="pixels of the low-resolution image"
    )
    filters.set_defaults(run=_filters)

    for command, name in ((lam, "lam.png"), (kept, "kept.png"), (filters, "filters.png")):
        command.add_argument("--image", type=Path, required=True, help="low-resolution image")
        command.add_argument("--device", help="default: a GPU where there is one")
        command.add_argument(
            "-o",
            "--output",
            type=file_of(".png", ".pdf"),
            default=Path(name),
            help=".png or .pdf; default: %(default)s",
        )
        command.add_argument("--random-weights", action="store_true", help="allow option files that name no weights")
        add_import(command)
    return parser


def _lam(arguments: argparse.Namespace) -> None:
    from dlgsanet.evaluation.attribution import attribute
    from dlgsanet.evaluation.explain_pictures import attribution_picture
    from dlgsanet.progress import Counter

    entries, networks, lr, x = _ready(arguments, arguments.networks)
    if len({entry.scale for entry in entries}) > 1:
        raise UserError("the networks have different scales; explain those of one at a time")
    names = [entry.name for entry in entries]
    if twice := [name for name in networks if names.count(name) > 1]:
        raise UserError(f"two networks are called {twice[0]!r}; name them apart: NAME=FILE")
    scale, window = entries[0].scale, arguments.window
    centre = ((length * scale - window) // 2 for length in (x.shape[3], x.shape[2]))
    left, top = arguments.at or centre
    with Counter("attribution", len(networks) * (arguments.steps + 2), "passes") as counter:
        found = {}
        for entry in entries:
            with within(str(entry.source)):
                network = networks[entry.name]
                found[entry.name] = attribute(network, x, left, top, window, arguments.steps, done=counter.done)
    attribution_picture(arguments.output, lr, (left, top, window), found)
    for name, attribution in found.items():
        print(f"{name}: diffusion index {attribution.diffusion_index:.2f}")


def _kept(arguments: argparse.Namespace) -> None:
    from dlgsanet.evaluation.attention import kept_shares
    from dlgsanet.evaluation.explain_pictures import kept_picture

    (entry,), networks, _, x = _ready(arguments, [arguments.network])
    with within(arguments.network):
        shares = kept_shares(networks[entry.name], x)
    kept_picture(arguments.output, entry.name, shares)
    print(f"{entry.name}: {100 * shares.mean():.1f}% of similarities kept")


def _filters(arguments: argparse.Namespace) -> None:
    from dlgsanet.evaluation.attention import filters_at
    from dlgsanet.evaluation.explain_pictures import filters_picture

    (entry,), networks, lr, x = _ready(arguments, [arguments.network])
    for column, row in arguments.points:
        if not (0 <= column < lr.shape[1] and 0 <= row < lr.shape[0]):
            raise UserError(f"--points {column},{row}: not within the {lr.shape[1]}x{lr.shape[0]} image")
    with within(arguments.network):
        filters = filters_at(networks[entry.name], x, arguments.points)
    filters_picture(arguments.output, lr, arguments.points, filters)


def _ready(
    arguments: argparse.Namespace, files: list[str]
) -> "tuple[list[Entry], dict[str, nn.Module], np.ndarray, Tensor]":
    """The networks' entries, the networks by name, the image uint8 [H, W, 3], and as a tensor [1, 3, H, W]."""
    from dlgsanet.data.images import read_rgb
    from dlgsanet.device import find_device
    from dlgsanet.evaluation.entries import read_entry, trained_module
    from dlgsanet.evaluation.scoring import to_tensor
    from dlgsanet.extensions import import_all

    import_all(arguments.imports)
    device = find_device(arguments.device)
    lr = read_rgb(arguments.image)
    entries = [read_entry(file, allow_random_weights=arguments.random_weights) for file in files]
    networks = {entry.name: trained_module(entry, device) for entry in entries}
    return entries, networks, lr, to_tensor([lr], device)


def _point(text: str) -> tuple[int, int]:
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write X,Y, e.g. 20,30") from None
    return x, y
