"""`dlgsanet ablate`: the paper's ablations from one training file."""

from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, whole_number

EXAMPLES = """examples:
  dlgsanet ablate -opt options/train/train_..._Tiny_..._SRx4_....yml \\
    --iterations 50000 --seeds 10 11
  dlgsanet ablate -opt base.yml --iterations 5000 --variants relu topk \\
    --data-root /scratch/datasets
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet ablate",
        description="Train variants of a file with the same seed and budget, and print one table of its validation "
        "sets. Variants: relu, topk, topk25, topk75 (the largest half, quarter, three quarters), softmax, gelu, "
        "sigmoid (SparseGSA's selection), static (a static depth-wise convolution for MHDLSA), local, global (one kind "
        "of layer alone, twice the blocks).",
        epilog=EXAMPLES,
    )
    parser.add_argument("-opt", required=True, metavar="FILE", help="training option file to start from")
    parser.add_argument("--iterations", type=whole_number(), required=True, help="of every run")
    parser.add_argument("--variants", nargs="+", metavar="V", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], metavar="N", help="default: 10")
    parser.add_argument("--data-root", metavar="DIR", help="folder that stands for `datasets/` in the file")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/ablation"), help="default: %(default)s")
    arguments = parser.parse_args(argv)

    from dlgsanet.errors import ArgumentError, unknown
    from dlgsanet.evaluation.ablation import VARIANTS, ablate

    variants = list(dict.fromkeys(arguments.variants or VARIANTS))
    if wrong := [name for name in variants if name not in VARIANTS]:
        raise ArgumentError("variants", unknown("variant", wrong[0], VARIANTS))
    seeds = list(dict.fromkeys(arguments.seeds))
    print(ablate(arguments.opt, variants, seeds, arguments.iterations, arguments.data_root, arguments.output))
    return 0
