"""`dlgsanet train -opt FILE`: train a network from an option file."""

from dlgsanet.commands.arguments import ArgumentParser, add_option_file, option_file
from dlgsanet.signals import StopSignals


def main(argv: list[str]) -> int:
    """Train; the exit code is 0, 75 (stopped by SIGTERM or SIGUSR1: requeue me) or 130 (stopped by Ctrl-C)."""
    parser = ArgumentParser(prog="dlgsanet train", description="Train a network from an option file.")
    add_option_file(parser)
    parser.add_argument(
        "--auto-resume", action="store_true", help="continue from the newest whole checkpoint of this run, if any"
    )
    arguments = parser.parse_args(argv)

    with StopSignals() as signals:  # before PyTorch is imported: a job that is warned by then must be queued again too
        from dlgsanet.options.read import read_options
        from dlgsanet.training.run import train

        options = read_options(**option_file(arguments), is_train=True, auto_resume=arguments.auto_resume)
        return train(options, arguments.launcher, signals)
