"""The `dlgsanet` command: a subcommand a line, no logic.

Nothing here imports torch, so that `dlgsanet --help` answers at once. A subcommand is a function
``main(argv: list[str]) -> int`` that parses its own arguments and returns the exit code.
"""

import importlib
import sys

from dlgsanet import __version__
from dlgsanet.allocator import keep_freed_memory
from dlgsanet.errors import UserError

# name -> (what it does, module:function)
SUBCOMMANDS = {
    "train": ("train a network from an option file", "dlgsanet.train:main"),
    "test": ("test a network from an option file: a table of PSNR and SSIM", "dlgsanet.test:main"),
    "data": ("prepare, check and store data sets", "dlgsanet.data.prepare:main"),
    "upscale": ("enlarge pictures and folders of pictures", "dlgsanet.inference.command:main"),
    "export": ("the network for other programs: ONNX, torch.export", "dlgsanet.inference.export_command:main"),
    "convert": ("weights between .pth and .safetensors", "dlgsanet.inference.convert_command:main"),
    "benchmark": ("tables and a results page of networks on test sets", "dlgsanet.evaluation.commands.benchmark:main"),
    "figure": ("the benchmark's crops as a figure for a paper", "dlgsanet.evaluation.commands.figure:main"),
    "explain": ("attribution maps, kept similarities, dynamic filters", "dlgsanet.evaluation.commands.explain:main"),
    "ablate": ("train the paper's ablations, print their table", "dlgsanet.evaluation.commands.ablate:main"),
    "doctor": ("what is installed here; which backend computes each layer, and why", "dlgsanet.doctor:main"),
    "complexity": (
        "parameters, multiply-accumulates, latency and memory",
        "dlgsanet.evaluation.commands.complexity:main",
    ),
}


def usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (text, _) in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "usage: dlgsanet COMMAND [ARGUMENT ...]",
            "",
            "DLGSANet: lightweight dynamic local and global self-attention for image super-resolution",
            "",
            *lines,
            "",
            "dlgsanet COMMAND --help tells the arguments of a command; dlgsanet --version the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run ``dlgsanet ARGV``: exit code 0, or 2 with one line on stderr for what the user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"dlgsanet {__version__}")
        return 0
    if argv[0] not in SUBCOMMANDS:
        return _fail(f"no command {argv[0]!r}; there are {', '.join(SUBCOMMANDS)}")
    return run(SUBCOMMANDS[argv[0]][1], argv[1:])


def run(entry: str, argv: list[str]) -> int:
    """Call ``module:function`` on argv, as every entry point does: errors that the user can mend become one line."""
    module, function = entry.split(":")
    try:
        keep_freed_memory()
        return getattr(importlib.import_module(module), function)(argv)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("dlgsanet: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `dlgsanet ... | head`
        sys.stderr.close()
        return 1


def _fail(message: str) -> int:
    print(f"dlgsanet: error: {message}", file=sys.stderr)
    return 2
