"""Published figures: the paper's (DLGSANet, ICCV 2023, arXiv 2301.02031), and those of other lightweight networks."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from dlgsanet.errors import UserError


def figures(size: str, scale: int) -> dict[str, dict[str, float]]:
    """The paper's mean PSNR and SSIM on Y: test set -> metric -> value."""
    with resources.files("dlgsanet.evaluation").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["scale"]) == (size, str(scale))]
    return {row["data set"]: {"psnr": float(row["psnr"]), "ssim": float(row["ssim"])} for row in rows}


@dataclass(frozen=True)
class Peer:
    """A published network.

    Attributes:
        cost: `parameters`, and `macs` for a 1280x720 output; what its source does not state is missing.
        means: as `figures` returns them; without "ssim" where only PSNR is published.
        source: names paper and table.
    """

    name: str
    cost: dict[str, float]
    means: dict[str, dict[str, float]]
    source: str


def peers(scale: int, datasets: Iterable[str]) -> list[Peer]:
    """Lightweight networks of others at a scale that have published PSNR and SSIM on Y of one of these test sets.

    The figures are in `peers.csv`.
    """
    wanted = set(datasets)
    with resources.files("dlgsanet.evaluation").joinpath("peers.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["scale"] == str(scale)]
    units = {"params [K]": ("parameters", 1e3), "multi-adds [G]": ("macs", 1e9)}
    found = []
    for row in rows:
        name, source, _ = (row.pop(column) for column in ("network", "source", "scale"))
        costs = {column: row.pop(column) for column in units}
        try:
            cost = {units[column][0]: float(cell) * units[column][1] for column, cell in costs.items() if cell}
            means = {
                dataset: dict(zip(("psnr", "ssim"), map(float, cell.split("/")), strict=False))
                for dataset, cell in row.items()
                if cell
            }
        except (ValueError, AttributeError):  # no number; more cells than columns
            raise UserError(f"peers.csv: {name}, x{scale}: see the other rows for what its cells must be") from None
        if wanted & means.keys():
            found.append(Peer(name, cost, means, source))
    return sorted(found, key=lambda peer: peer.cost.get("parameters", math.inf))


def sources(scale: int, datasets: Iterable[str]) -> str:
    """Where the figures of `peers` come from, in one sentence without its full stop."""
    names: dict[str, list[str]] = {}
    for peer in peers(scale, datasets):
        names.setdefault(peer.source, []).append(peer.name)
    return "; ".join(f"{', '.join(of)}: {source}" for source, of in names.items())
