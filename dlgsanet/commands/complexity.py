"""`dlgsanet complexity`: parameters, multiply-accumulates, latency and peak memory."""

import argparse

from dlgsanet.commands.arguments import ArgumentParser

EXAMPLES = """examples:
  dlgsanet complexity                                       the nine published networks
  dlgsanet complexity Tiny --scales 4 --device cuda
  dlgsanet complexity options/test/*.yml --runs 0           counted, not measured
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet complexity",
        description="Count and measure networks at an output size: parameters, true multiply-accumulates (every "
        "convolution and matrix product), latency (median of runs at batch 1) and peak memory beyond the weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "networks", nargs="*", default=["Tiny", "Light", "Large"], help="Tiny, Light, Large, or option files"
    )
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], metavar="S", help="of the named sizes")
    parser.add_argument(
        "--output", type=_size, default=(1280, 720), metavar="WxH", help="output size; default 1280x720"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1...; default: a GPU where there is one")
    parser.add_argument("--runs", type=int, default=3, help="timed runs a network, 0 to measure nothing; default 3")
    arguments = parser.parse_args(argv)

    from dlgsanet.evaluation.complexity import table

    print(table(arguments.networks, arguments.scales, arguments.output, arguments.device, arguments.runs))
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT, e.g. 1280x720") from None
    if min(width, height) < 16:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 16x16")
    return width, height
