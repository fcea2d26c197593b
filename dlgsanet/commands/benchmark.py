"""`dlgsanet benchmark`: tables and a results page of networks on test sets."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlgsanet.commands.arguments import ArgumentParser, add_import, add_shard, whole_number
from dlgsanet.errors import ArgumentError, UserError, counted, unknown
from dlgsanet.folder_lock import InUseError, owned

if TYPE_CHECKING:
    from dlgsanet.evaluation.benchmark import Outcome, Settings
    from dlgsanet.evaluation.entries import Entry

EXAMPLES = """examples:
  dlgsanet benchmark weights/*.safetensors --data datasets/Set5 datasets/Set14
  dlgsanet benchmark Ours=net_g_latest.pth EDSR=edsr_x4.yml \\
    --data datasets/Set5 --self-ensemble
"""


def main(argv: list[str]) -> int:
    """Score the networks and write the tables; exit code 2 (a UserError) if a part failed, after all others."""
    a = _parser().parse_args(argv)

    from dlgsanet.device import find_device, preferred_gpus
    from dlgsanet.evaluation.benchmark import METRICS, Settings, available, run_scale
    from dlgsanet.extensions import import_all

    for name in a.metrics:
        if name not in METRICS:
            raise ArgumentError("metrics", unknown("metric", name, METRICS))
    imports = import_all(a.imports)
    failures: list[str] = []
    networks = _networks(a, failures)
    there = sorted({entry.scale for entry in networks})
    if there and (absent := [scale for scale in a.scales or [] if scale not in there]):
        of = ", ".join(f"x{scale}" for scale in there)
        raise ArgumentError("scales", f"no network given is of x{absent[0]}; they are of {of}")
    devices = tuple(str(find_device(name, "devices")) for name in a.devices or preferred_gpus() or ["cpu"])
    metrics = available(["psnr", "ssim", *a.metrics], devices[0], failures)
    imports += [name for entry in networks for name in entry.options.get("imports", ())]
    settings = Settings(a.output, metrics, a.batch, devices, a.runs, tuple(imports), a.shard)
    for scale in a.scales or there:
        outcome = run_scale(scale, [e for e in networks if e.scale == scale], a.data, settings)
        if any(outcome.pairs.values()):  # otherwise there is nothing to put into tables
            _report(outcome, settings, a.published)
        failures += outcome.failures
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise UserError(f"{counted(len(failures), 'part')} of the benchmark failed, see above; the rest is done")
    return 0


def _networks(arguments: argparse.Namespace, failures: list[str]) -> "list[Entry]":
    """The networks that were given; a line for each that cannot be read is added to `failures`."""
    from dlgsanet.evaluation.entries import read_entry

    found = []
    for argument in arguments.networks:
        for ensemble in (False, True) if arguments.self_ensemble else (False,):
            try:
                found.append(read_entry(argument, ensemble, arguments.random_weights))
            except UserError as error:
                failures += [str(error)] if str(error) not in failures else []
    named = [(entry.name, entry.scale) for entry in found]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"two networks are called {twice[0][0]!r}; name them apart: NAME=FILE")
    return found


def _report(outcome: "Outcome", settings: "Settings", published: bool) -> None:
    """Measure the costs, and write the tables and the page of a scale, unless other parts are still at work."""
    from dlgsanet.evaluation.benchmark import add_costs
    from dlgsanet.evaluation.page import write_page
    from dlgsanet.evaluation.report import write_reports

    scale, output = outcome.scale, settings.output
    if settings.shard and outcome.missing:
        print(
            f"x{scale}: pictures missing: {outcome.missing}, in parts that have failed or not ended; the part that "
            "ends last makes the tables, or a run without --shard"
        )
        return
    try:
        with owned(output / f"x{scale}"):  # of two parts that end together, one makes the tables
            add_costs(outcome, settings)
            print(write_reports(outcome, settings.metrics, output, published), end="\n\n")
            if outcome.rows:
                print(f"Page: {write_page(outcome, settings.metrics, output, published)}\n")
    except InUseError:
        if not settings.shard:
            raise
        print(f"x{scale}: another part makes the tables")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="dlgsanet benchmark",
        description="Score networks on test sets and compare them with bicubic and the paper: tables (CSV, JSON, "
        "Markdown, LaTeX), the pictures, and a results page for each scale. An interrupted run continues where it "
        "stopped.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="[NAME=]FILE",
        help="weights of a DLGSANet (.pth, .safetensors), or an option file of any network, with its weights",
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="test sets: folders with HR and LR_bicubic"
    )
    parser.add_argument("--scales", type=whole_number(), nargs="+", metavar="S", help="default: those of the networks")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/benchmark"), help="default: %(default)s")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="M",
        help="in addition to psnr and ssim: psnr_rgb, ssim_rgb; lpips, dists (from the package pyiqa, which downloads "
        "backbones)",
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="also score each network's self-ensemble, as NAME+"
    )
    parser.add_argument("--published", action="store_true", help="also show published figures of other networks")
    parser.add_argument("--batch", type=whole_number(), default=8, help="pictures of equal size at once; default: 8")
    parser.add_argument("--devices", nargs="+", metavar="D", help="default: every GPU, or cpu")
    parser.add_argument(
        "--runs", type=whole_number(0), default=3, help="timed runs for the latency, 0 for none; default: 3"
    )
    parser.add_argument("--random-weights", action="store_true", help="allow option files that name no weights")
    add_shard(parser)
    add_import(parser)
    return parser
