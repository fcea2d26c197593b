"""What the commands' arguments have in common."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """Flags are written with hyphens; the spelling with underscores, as BasicSR has it, works too."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(None if args is None else [_with_hyphens(arg) for arg in args], namespace)


def _with_hyphens(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def add_option_file(parser: argparse.ArgumentParser) -> None:
    """The arguments that BasicSR's users know, and `--data-root`. `option_file` gives them to `read_options`."""
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--force-yml",
        nargs="+",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="change options of the file, e.g. train:ema_decay=0.99 datasets:train:batch_size_per_gpu=4",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder that stands for `datasets/` in the file's relative data roots"
    )
    add_import(parser)
    parser.add_argument("--debug", action="store_true", help="a short run: validate, log and save often")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="how ranks start")
    parser.add_argument("--local-rank", type=int, default=0, help="ignored; older launchers pass it")


def option_file(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `read_options` from those of `add_option_file`."""
    return {
        "path": arguments.opt,
        "changes": arguments.force_yml,
        "data_root": arguments.data_root,
        "debug": arguments.debug,
        "imports": arguments.imports,
    }


def whole_number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` up, at most `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            limits = f"from {least} up" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return number

    return parse


def add_import(parser: argparse.ArgumentParser) -> None:
    """`--import`, for networks and other classes of one's own (see `dlgsanet.extensions`)."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        help="import this first: it registers networks of your own (docs/own_network.md); may be given several times",
    )
