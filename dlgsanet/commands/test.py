"""`dlgsanet test -opt FILE`: a table of PSNR and SSIM of a network on the data sets of an option file."""

import argparse

from dlgsanet.errors import UserError
from dlgsanet.options import add_arguments, read_options


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dlgsanet test",
        description="Test a network on the data sets of an option file: a table of its scores beside bicubic's, "
        "every picture's scores as CSV and Markdown, and the pictures, in results/NAME.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--random_weights", action="store_true", help="go on when the file names no weights (about 9 dB)"
    )
    arguments = parser.parse_args(argv)
    if arguments.launcher != "none":
        raise UserError("--launcher: a test runs in one process; `dlgsanet benchmark` uses all GPUs")
    options = read_options(arguments, is_train=False)

    from dlgsanet.evaluation.testing import run_test

    print(run_test(options, arguments.random_weights))
    return 0
