"""`dlgsanet train -opt FILE`: train a network from an option file."""

from dlgsanet.allocator import keep_freed_memory
from dlgsanet.commands.arguments import ArgumentParser, add_option_file, option_file, whole_number
from dlgsanet.signals import StopSignals


def main(argv: list[str]) -> int:
    """Train; the exit code is 0, 75 (stopped by SIGTERM or SIGUSR1: requeue me) or 130 (stopped by Ctrl-C)."""
    parser = ArgumentParser(prog="dlgsanet train", description="Train a network from an option file.")
    add_option_file(parser)
    parser.add_argument(
        "--auto-resume", action="store_true", help="continue from the newest whole checkpoint of this run, if any"
    )
    parser.add_argument(
        "--same-options",
        action="store_true",
        help="with --auto-resume: refuse to continue a run that began with other options, images or weights",
    )
    parser.add_argument(
        "--decay-now",
        type=whole_number(),
        metavar="N",
        help="train a copy of this run, NAME_decay_ITERATION, from its newest checkpoint for N more iterations, in "
        "which the learning rate decays to 0; the run itself can continue later",
    )
    arguments = parser.parse_args(argv)
    if arguments.same_options and not (arguments.auto_resume or arguments.decay_now):
        parser.error("--same-options is for a run that is resumed: add --auto-resume")

    keep_freed_memory()
    with StopSignals() as signals:  # before PyTorch is imported: a signal may come that early
        from dlgsanet.distributed import as_rank
        from dlgsanet.options.read import read_options
        from dlgsanet.training.branch import Branch
        from dlgsanet.training.run import train

        file = option_file(arguments)
        continues = arguments.auto_resume or bool(arguments.decay_now)
        with as_rank(arguments.launcher):
            options = read_options(**file, is_train=True, auto_resume=continues)
        branch = Branch(file, arguments.decay_now) if arguments.decay_now else None
        return train(options, arguments.launcher, signals, branch, arguments.same_options)
