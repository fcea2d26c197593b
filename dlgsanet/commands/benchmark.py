"""`dlgsanet benchmark`: tables and a results page of networks on test sets."""

import argparse
import sys
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser
from dlgsanet.errors import UserError

EXAMPLES = """examples:
  dlgsanet benchmark weights/*.safetensors --data datasets/Set5 datasets/Set14
  dlgsanet benchmark Ours=net_g_latest.pth EDSR=options/test/edsr_x4.yml --data datasets/Set5 --self-ensemble
"""


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)

    from dlgsanet.device import find_device
    from dlgsanet.evaluation.benchmark import METRICS, Settings, available, run_scale
    from dlgsanet.evaluation.entries import read_entry
    from dlgsanet.evaluation.page import write_page
    from dlgsanet.evaluation.report import write_reports

    if unknown := sorted(set(arguments.metrics) - set(METRICS)):
        raise UserError(f"--metrics {unknown[0]}: there are {', '.join(METRICS)}")
    failures: list[str] = []
    networks = []
    for argument in arguments.networks:
        for ensemble in (False, True) if arguments.self_ensemble else (False,):
            try:
                networks.append(read_entry(argument, ensemble, arguments.random_weights))
            except UserError as error:
                failures += [str(error)] if str(error) not in failures else []
    named = [(entry.name, entry.scale) for entry in networks]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"two networks are called {twice[0][0]}; name them apart: NAME=FILE")
    devices = tuple(str(find_device(name, "devices")) for name in arguments.devices or _every_gpu() or ["cpu"])
    metrics = available(["psnr", "ssim", *arguments.metrics], devices[0], failures)
    settings = Settings(arguments.output, metrics, arguments.batch, devices, arguments.runs)
    for scale in arguments.scales or sorted({entry.scale for entry in networks}):
        outcome = run_scale(scale, [e for e in networks if e.scale == scale], arguments.data, settings)
        print(write_reports(outcome, metrics, arguments.output), end="\n\n")
        if outcome.rows:
            print(f"Page: {write_page(outcome, metrics, arguments.output)}\n")
        failures += outcome.failures
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} parts of the benchmark failed, see above; the rest is done")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="dlgsanet benchmark",
        description="Score networks on test sets beside bicubic and the paper: tables (CSV, JSON, Markdown, LaTeX), "
        "the pictures, and a results page a scale. An interrupted run goes on where it stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="[NAME=]FILE",
        help="weights of a DLGSANet (.pth, .safetensors), or a test option file of any network of BasicSR's registry",
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="test sets: folders with HR and LR_bicubic"
    )
    parser.add_argument("--scales", type=int, nargs="+", metavar="S", help="default: all that the networks have")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/benchmark"), help="default: %(default)s")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="M",
        help="beside psnr and ssim: psnr_rgb, ssim_rgb; lpips, dists (by the package pyiqa, which downloads backbones)",
    )
    parser.add_argument("--self-ensemble", action="store_true", help="score every network x8 too, as NAME+")
    parser.add_argument("--batch", type=_positive, default=8, help="pictures of equal size at once; default: 8")
    parser.add_argument("--devices", nargs="+", metavar="D", help="default: every GPU, or cpu")
    parser.add_argument("--runs", type=int, default=3, help="timed runs for the latency, 0 for none; default: 3")
    parser.add_argument("--random-weights", action="store_true", help="let option files name no weights")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def _every_gpu() -> list[str]:
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
