"""The `dlgsanet` command.

A subcommand NAME is ``dlgsanet.commands.NAME.main(argv: list[str]) -> int``, which parses its arguments and returns the
exit code. Nothing here imports torch, so that `dlgsanet --help` answers at once.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from dlgsanet import __version__
from dlgsanet.errors import UserError, unknown
from dlgsanet.startup import leave, prepare_standard_streams, spin_shortly

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Of a path that the user gave, or of a file that has vanished while it was used.
UNUSABLE = (
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOENT,
    errno.ESTALE, *FULL,
)  # fmt: skip
# name -> what it does; its arguments and `main` are in `dlgsanet.commands.NAME`.
SUBCOMMANDS = {
    "upscale": "upscale pictures and folders of pictures",
    "web": "a page in the browser that upscales pictures",
    "train": "train a network from an option file",
    "test": "test a network from an option file: a table of PSNR and SSIM",
    "data": "prepare, check and store data sets",
    "benchmark": "tables and a results page of networks on test sets",
    "figure": "the benchmark's crops as a figure for a paper",
    "complexity": "parameters, multiply-accumulates, latency and memory",
    "explain": "attribution maps, kept similarities, dynamic filters",
    "ablate": "train variants of a network, print their table",
    "export": "the network for other programs: ONNX, torch.export",
    "convert": "weights between .pth and .safetensors",
    "doctor": "what is installed here; which backend computes each layer, and why",
}


# They only run a network: nothing has to be done when they end.
LEAVE_AT_ONCE = ("upscale", "doctor")


def usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: dlgsanet COMMAND [ARGUMENT ...]",
            "",
            "DLGSANet: image super-resolution by dynamic local and global self-attention",
            "",
            *lines,
            "",
            "dlgsanet COMMAND --help shows the arguments of a command; --version the version.",
        ]
    )


def entry() -> None:
    """`main` as a process of its own."""
    code = main()
    if sys.argv[1:2] and sys.argv[1] in LEAVE_AT_ONCE:
        leave(code)
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run ``dlgsanet ARGV``: exit code 0, or 2 with one line on stderr for an error that the user can fix."""
    return _with_clear_errors(partial(_dispatch, sys.argv[1:] if argv is None else argv))


def run(entry: str, argv: list[str]) -> int:
    """Call ``module:function`` with argv, as every entry point does: errors that the user can fix become one line."""
    return _with_clear_errors(partial(_call, entry, argv))


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"dlgsanet {__version__}")
        return 0
    if argv[0] not in SUBCOMMANDS:
        return _fail(unknown("command", argv[0], SUBCOMMANDS))
    return _call(f"dlgsanet.commands.{argv[0]}:main", argv[1:])


def _call(entry: str, argv: list[str]) -> int:
    module, function = entry.split(":")
    try:
        os.getcwd()
    except FileNotFoundError:  # torch would end the process, with a message about its own files
        raise UserError("the working folder has been deleted; change to another one") from None
    spin_shortly()
    return getattr(importlib.import_module(module), function)(argv)


def _with_clear_errors(work: Callable[[], int]) -> int:
    prepare_standard_streams()
    try:
        code = work()
        sys.stdout.flush()  # at its end, Python could only print a traceback
        return code
    except UserError as error:
        return _fail(error.for_command())
    except KeyboardInterrupt:
        print("dlgsanet: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `dlgsanet ... | head`
        _drop_output()
        return 1
    except OSError as error:
        if error.filename and error.errno in UNUSABLE:
            return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")
        if not error.filename and "temporary directory" in str(error.strerror):  # of Python's tempfile
            return _fail(f"{error.strerror}; set TMPDIR to a folder that can be written")
        if error.filename or error.errno not in FULL:
            raise
        _drop_output()
        return _fail(f"standard output, or a file, cannot be written: {error.strerror}")


def _drop_output() -> None:
    """Have Python not try again at its end to write what cannot be written: it would print a traceback."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _fail(message: str) -> int:
    with suppress(OSError):  # stderr may be a file on a full disk; the exit code counts then
        print(f"dlgsanet: error: {message}", file=sys.stderr, flush=True)
    return 2
