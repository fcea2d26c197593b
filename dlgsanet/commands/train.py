"""`dlgsanet train -opt FILE`: train a network from an option file."""

import argparse

from dlgsanet.options import add_arguments
from dlgsanet.signals import StopSignals


def main(argv: list[str]) -> int:
    """Train; the exit code is 0, 75 (stopped by SIGTERM or SIGUSR1: requeue me) or 130 (stopped by Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="dlgsanet train", description="Train a network from an option file.")
    add_arguments(parser)
    parser.add_argument(
        "--auto_resume", action="store_true", help="go on from the newest whole checkpoint of this run, if there is one"
    )
    args = parser.parse_args(argv)

    with StopSignals() as signals:  # before PyTorch is imported: a job that is warned by then must be queued again too
        from dlgsanet.training.run import train

        return train(args, signals)
