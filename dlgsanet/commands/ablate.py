"""`dlgsanet ablate`: variants of the network of one training file."""

from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, add_import, whole_number
from dlgsanet.signals import StopSignals

EXAMPLES = """examples:
  dlgsanet ablate -opt options/train/train_..._Tiny_..._SRx4_....yml \\
    --iterations 50000 --seeds 10 11
  dlgsanet ablate -opt base.yml --iterations 5000 --variants relu topk \\
    --data-root /scratch/datasets
  dlgsanet ablate -opt own.yml --iterations 5000 \\
    --variants base dim=36 dim=36,n_blocks=16
"""


def main(argv: list[str]) -> int:
    """Train and score; the exit code is 0, 75 (stopped by SIGTERM or SIGUSR1: requeue me) or 130 (Ctrl-C)."""
    parser = ArgumentParser(
        prog="dlgsanet ablate",
        description="Train variants of a file with the same seed and budget, and print one table of its validation "
        "sets. A variant is `base` (the file's network), changes of network_g (KEY=VALUE or KEY=VALUE,KEY=VALUE), or, "
        "of DLGSANet: relu, topk, topk25, topk75 (the largest half, quarter, three quarters), softmax, gelu, sigmoid "
        "(SparseGSA's selection), static (a static depth-wise convolution for MHDLSA), local, global (only one "
        "kind of layer, twice the blocks).",
        epilog=EXAMPLES,
    )
    parser.add_argument("-opt", required=True, metavar="FILE", help="training option file to start from")
    parser.add_argument("--iterations", type=whole_number(), required=True, help="of every run")
    parser.add_argument("--variants", nargs="+", metavar="V", help="default: all of DLGSANet's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], metavar="N", help="default: 10")
    parser.add_argument("--data-root", metavar="DIR", help="folder that stands for `datasets/` in the file")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/ablation"), help="default: %(default)s")
    add_import(parser)
    arguments = parser.parse_args(argv)
    variants, seeds = (list(dict.fromkeys(given or [])) for given in (arguments.variants, arguments.seeds))

    with StopSignals() as signals:  # before PyTorch is imported: a signal may come that early
        from dlgsanet.evaluation.ablation import ablate

        a = arguments
        return ablate(a.opt, variants, seeds, a.iterations, a.data_root, a.output, a.imports, signals)
