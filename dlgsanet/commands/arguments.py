"""What the commands' arguments have in common."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from dlgsanet.errors import nearest, unknown
from dlgsanet.pictures.shares import Shard, read_shard


class _HelpFormatter(argparse.HelpFormatter):
    """Breaks text without line ends at words, and keeps text that has some, such as examples.

    The usage has what must be given, in an order that works: a positional argument after an option that takes several
    values would be one more value.
    """

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        if usage is None:
            words = [self._format_args(action, action.dest) for action in actions if not action.option_strings]
            options = [action for action in actions if action.option_strings and action.dest != "help"]
            words += [f"{o.option_strings[0]} {self._format_args(o, o.dest.upper())}" for o in options if o.required]
            words += ["[option ...]"] if any(not option.required for option in options) else []
            usage = textwrap.fill(" ".join([self._prog, *words]), 70, subsequent_indent=" " * 9).replace("%", "%%")
        return super()._format_usage(usage, actions, groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option or choice that was probably meant.

    Flags are written with hyphens; the spelling with underscores, as BasicSR has it, works too.
    """

    def __init__(self, prog: str | None = None, **options: Any):
        super().__init__(prog, formatter_class=_HelpFormatter, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)  # what follows is no option
        given[:end] = map(_with_hyphens, given[:end])
        if not self._subparsers:  # a subcommand has a parser of its own, which knows its options
            for argument in given[:end]:
                self._check_option(argument.partition("=")[0])
            self._check_not_empty(given)
        known, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}; {self.prog} --help lists the arguments")
        return known, rest

    def _check_option(self, flag: str) -> None:
        """Refuse an unknown option before anything else, such as a required one that is missing, can be reported."""
        options = self._option_string_actions
        if flag.startswith("--") and not any(option.startswith(flag) for option in options):
            near = nearest(flag, options)
            hint = f"did you mean {near}?" if near else f"{self.prog} --help lists the options"
            self.error(f"unknown option {flag!r}; {hint}")

    def _check_not_empty(self, given: list[str]) -> None:
        """Refuse empty arguments, such as "$FOLDER" of a shell in which it is not set: as a path it means `.`."""
        for flag, argument in pairwise(["", *given]):
            option = self._option_string_actions.get(flag)
            if not argument and (option is None or option.default != ""):
                after = f" after {flag}" if flag else ""
                self.error(f"an argument is empty{after}; is a variable of the shell not set?")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if isinstance(action, argparse._SubParsersAction) else action.dest
            flag = f"{action.option_strings[0]}: " if action.option_strings else ""
            raise argparse.ArgumentError(None, flag + unknown(what, value, action.choices))

    def error(self, message: str) -> NoReturn:
        hint = f"; {self.prog} --help lists them" if message.startswith("the following arguments are required") else ""
        self.exit(2, f"{self.prog.partition(' ')[0]}: error: {message}{hint}\n")  # as all other errors begin


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
    parser.add_argument(
        "--debug",
        action="store_true",
        help="call the run debug_NAME; training logs every iteration, and validates and saves every 8 iterations",
    )
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="how ranks start; default: none"
    )
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


def add_size(parser: argparse.ArgumentParser, name: str, default: tuple[int, int], what: str, least: int = 1) -> None:
    """An argument WxH, the width and height of an image, each from `least` up."""

    def parse(text: str) -> tuple[int, int]:
        try:
            width, height = map(int, text.split("x"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT, e.g. 1280x720") from None
        if not least <= min(width, height) <= max(width, height) <= 1 << 16:
            raise argparse.ArgumentTypeError(f"{text!r}: must be from {least}x{least} to 65536x65536")
        return width, height

    shown = "{}x{}".format(*default)
    parser.add_argument(name, type=parse, default=default, metavar="WxH", help=f"{what}; default: {shown}")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights` and `--scale`, of a network that is run or written."""
    parser.add_argument(
        "-n",
        "--weights",
        default="Tiny",
        metavar="WEIGHTS",
        help="a .safetensors or .pth file, or the name of included weights: Tiny, Tiny_jpeg (for compressed "
        "photographs), or one scale of them, such as DLGSANet_Tiny_x4; default: %(default)s",
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="scale factor of the network; default: that of "
        "the weights, of several the smallest that suffices")  # fmt: skip


def file_of(*endings: str) -> Callable[[str], Path]:
    """The type of an argument that is a file to write, whose name has one of these endings: ``.png``."""

    def parse(text: str) -> Path:
        if not text.lower().endswith(endings):
            raise argparse.ArgumentTypeError(f"{text}: must end in {' or '.join(endings)}")
        return Path(text)

    return parse


def part_of_name(text: str) -> str:
    """The type of an argument that is the name of a file or folder, or a part of it: it leads to no other folder."""
    if "/" in text or "\0" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be in the name of a file or folder; give one without /")
    return text


def add_import(parser: argparse.ArgumentParser) -> None:
    """`--import`, for networks and other classes of your own (see `dlgsanet.extensions`)."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        help="import this first: it registers networks of your own (docs/own_network.md); may be given several times",
    )


def add_shard(parser: argparse.ArgumentParser) -> None:
    """`--shard`, for jobs that share the pictures."""
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do only part I of N, for N jobs that share the pictures; slurm: the part of this task of a job array",
    )


def _shard(text: str) -> Shard:
    try:
        return read_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
