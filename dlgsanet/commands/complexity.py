"""`dlgsanet complexity`: parameters, multiply-accumulates, latency and peak memory."""

import sys

from dlgsanet.commands.arguments import ArgumentParser, add_import, add_size, whole_number
from dlgsanet.errors import UserError

EXAMPLES = """examples:
  dlgsanet complexity                              the nine published networks
  dlgsanet complexity Tiny --scales 4 --device cuda
  dlgsanet complexity options/test/*.yml --runs 0  counted, not measured
  dlgsanet complexity own.yml --import own.py      a network of your own
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet complexity",
        description="Count and measure networks at an output size: parameters, multiply-accumulates (of every "
        "convolution and matrix product), latency (median of runs at batch 1) and peak memory beyond the weights.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "networks",
        nargs="*",
        default=["Tiny", "Light", "Large"],
        metavar="NETWORK",
        help="Tiny, Light, Large, option files, or weight files of DLGSANets; default: the three sizes",
    )
    parser.add_argument(
        "--scales",
        type=whole_number(),
        nargs="+",
        default=[2, 3, 4],
        metavar="S",
        help="of the named sizes; default: 2 3 4",
    )
    add_size(parser, "--size", (1280, 720), "of the output", least=16)
    parser.add_argument("--device", help="cpu, cuda, cuda:1...; default: a GPU where there is one")
    parser.add_argument(
        "--runs", type=whole_number(0), default=3, help="timed runs of each network, 0 to measure nothing; default: 3"
    )
    add_import(parser)
    arguments = parser.parse_args(argv)

    from dlgsanet.evaluation.complexity import table
    from dlgsanet.extensions import import_all

    import_all(arguments.imports)
    text, failures = table(arguments.networks, arguments.scales, arguments.size, arguments.device, arguments.runs)
    if text:
        print(text)
    for failure in failures[:-1]:
        print(failure, file=sys.stderr)
    if failures:
        raise UserError(failures[-1])
    return 0
