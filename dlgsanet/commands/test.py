"""`dlgsanet test -opt FILE`: a table of PSNR and SSIM of a network on the data sets of an option file."""

import sys
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, add_option_file, option_file
from dlgsanet.errors import UserError, counted
from dlgsanet.folder_lock import owned


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet test",
        description="Test a network on the data sets of an option file: a table of its scores and bicubic's, "
        "every picture's scores as CSV and Markdown and, with val: save_img, the pictures, in results/NAME.",
    )
    add_option_file(parser)
    parser.add_argument("--random-weights", action="store_true", help="allow option files that name no weights")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="test on these data sets of the file; default: all that are there"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 2 when a data set of the file is not there")
    arguments = parser.parse_args(argv)
    if arguments.launcher != "none":
        raise UserError("--launcher: a test runs in one process; `dlgsanet benchmark` uses all GPUs")

    from dlgsanet.evaluation.testing import run_test
    from dlgsanet.options.read import read_options

    options = read_options(**option_file(arguments), is_train=False, datasets=arguments.datasets)
    for line in options["absent"]:
        print(line, file=sys.stderr)
    with owned(Path(options["path"]["results_root"])):  # two tests of one name would mix their results
        print(run_test(options, allow_random_weights=arguments.random_weights))
    if options["absent"] and arguments.strict:
        raise UserError(f"--strict: {counted(len(options['absent']), 'data set')} not found, see above")
    return 0
