"""The benchmark's outcome as tables: terminal, Markdown, LaTeX, CSV and JSON."""

import json
import math
import textwrap
from pathlib import Path
from typing import Any

from dlgsanet.evaluation.benchmark import Outcome
from dlgsanet.evaluation.entries import Entry
from dlgsanet.evaluation.published import figures, peers, sources
from dlgsanet.evaluation.rows import every_image, means
from dlgsanet.evaluation.tables import Table, figure, terminal_width
from dlgsanet.files import write_whole

NONE = "-"


def write_reports(outcome: Outcome, metrics: tuple[str, ...], output: Path, published: bool = False) -> str:
    """Write `x4.csv` (every picture), `x4.json` (all results), `x4.md` and `x4.tex` (the table of means).

    Args:
        published: also show the published figures of other networks.

    Returns:
        The table for the terminal.
    """
    table = main_table(outcome, metrics, published)
    images = every_image(outcome.rows, metrics)
    notes = _notes(outcome, metrics, published)
    stem = f"x{outcome.scale}"
    write_whole(output / f"{stem}.csv", images.csv().encode())
    write_whole(output / f"{stem}.json", (json.dumps(as_json(outcome), indent=1) + "\n").encode())
    write_whole(output / f"{stem}.tex", table.latex().encode())
    markdown = (
        f"# ×{outcome.scale}\n\n{table.markdown()}\n{_wrapped(notes, 100)}\n\n## Every picture\n\n{images.markdown()}"
    )
    write_whole(output / f"{stem}.md", markdown.encode())
    return f"×{outcome.scale}\n\n{table.text(terminal_width())}\n\n{_wrapped(notes, terminal_width())}"


def main_table(outcome: Outcome, metrics: tuple[str, ...], published: bool = False) -> Table:
    """One row per method. Below a published network: the paper's values and the difference from them.

    With `published`, lines of other published networks follow.

    A cell is `PSNR/SSIM`, with as many metrics as were asked for.
    """
    mean_of = {(row.dataset, row.method): row.scores for row in means(outcome.rows)}
    lines = []
    for entry in outcome.entries:
        scores = {name: mean_of[name, entry.name] for name in outcome.pairs if (name, entry.name) in mean_of}
        cells = [_cell(scores.get(name), metrics) + _share(outcome, name, entry.name) for name in outcome.pairs]
        lines.append([entry.name, *_cost_cells(outcome.costs.get(entry.name, {})), *cells])
        lines += _published_lines(entry, scores, list(outcome.pairs), metrics)
    for peer in peers(outcome.scale, outcome.pairs) if published else ():
        cells = [_cell(peer.means.get(name), metrics) for name in outcome.pairs]
        lines.append([f"{peer.name} (published)", *_cost_cells(peer.cost), *cells])
    header = ["method", "params [K]", "GMACs", "latency [ms]", "memory [MiB]", *outcome.pairs]
    return Table(header, lines)


def _cell(scores: dict[str, float] | None, metrics: tuple[str, ...]) -> str:
    """The scores as `PSNR/SSIM`. Published ones are not of all metrics."""
    return "/".join(figure(m, scores[m]) for m in metrics if m in scores) if scores else NONE


def _share(outcome: Outcome, dataset: str, method: str) -> str:
    """How many pictures a mean is of, where that is not all."""
    scored = sum((row.dataset, row.method) == (dataset, method) for row in outcome.rows)
    return "" if scored in (0, outcome.sizes[dataset]) else f" ({scored} of {outcome.sizes[dataset]})"


def _cost_cells(cost: dict[str, Any]) -> list[str]:
    def cell(key: str, unit: float, decimals: int) -> str:
        return f"{cost[key] / unit:.{decimals}f}" if cost.get(key) is not None else NONE

    return [cell("parameters", 1e3, 1), cell("macs", 1e9, 1), cell("seconds", 1e-3, 1), cell("peak_bytes", 2**20, 0)]


def _published_lines(
    entry: Entry, scores: dict[str, dict[str, float]], datasets: list[str], metrics: tuple[str, ...]
) -> list[list[str]]:
    paper = figures(entry.size, entry.scale) if entry.size and not entry.ensemble else {}
    if not any(name in paper for name in datasets):
        return []
    published = [_cell(paper.get(name), metrics) for name in datasets]
    differences = []
    for name in datasets:
        both = [m for m in metrics if name in paper and name in scores and m in paper[name]]
        # of figures as printed, as a reader would subtract them
        cells = [_signed(m, float(figure(m, scores[name][m])) - paper[name][m]) for m in both]
        differences.append("/".join(cells) or NONE)
    blank = [""] * 4
    return [[f"{entry.size} (paper)", *blank, *published], [f"{entry.name} − paper", *blank, *differences]]


def _signed(metric: str, difference: float) -> str:
    return ("−" if difference < 0 else "+") + figure(metric, abs(difference))


def _notes(outcome: Outcome, metrics: tuple[str, ...], published: bool) -> list[str]:
    parts = [f"Each cell: {'/'.join(m.upper() for m in metrics)}; PSNR and SSIM on Y, {outcome.scale} pixels cropped."]
    if outcome.costs:
        parts.append("Parameters, multiply-accumulates, latency and memory at a 1280x720 output, batch 1.")
    parts += {f"Measured on {cost['device']}." for cost in outcome.costs.values() if "device" in cost}
    if published:
        of = f"at ×{outcome.scale} there are none of these test sets"
        parts.append(f"Published figures: {sources(outcome.scale, outcome.pairs) or of}.")
    return parts


def _wrapped(parts: list[str], width: int) -> str:
    return "\n".join(line for part in parts for line in textwrap.wrap(part, width))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All that is known, as JSON allows it."""
    known = {
        "scale": outcome.scale,
        "data": {name: str(folder) for name, folder in outcome.folders.items()},
        "methods": [
            {
                "name": entry.name,
                "published": entry.size,
                **outcome.costs.get(entry.name, {}),
                "means": {row.dataset: row.scores for row in means(outcome.rows) if row.method == entry.name},
                "of fewer pictures": {
                    name: share.strip(" ()") for name in outcome.pairs if (share := _share(outcome, name, entry.name))
                },
            }
            for entry in outcome.entries
        ],
        "images": [{"data set": r.dataset, "image": r.image, "method": r.method, **r.scores} for r in outcome.rows],
        "failures": outcome.failures,
    }
    return _finite(known)


def _finite(value: Any) -> Any:
    """JSON knows no infinity, which is the PSNR of a perfect picture."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
