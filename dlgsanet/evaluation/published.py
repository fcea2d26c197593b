"""Published figures: the paper's (DLGSANet, ICCV 2023, arXiv 2301.02031), and those of other lightweight networks."""

import csv
from dataclasses import dataclass
from importlib import resources


def figures(size: str, scale: int) -> dict[str, dict[str, float]]:
    """The paper's mean PSNR and SSIM on Y: test set -> metric -> value."""
    with resources.files("dlgsanet.evaluation").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["scale"]) == (size, str(scale))]
    return {row["data set"]: {"psnr": float(row["psnr"]), "ssim": float(row["ssim"])} for row in rows}


@dataclass(frozen=True)
class Peer:
    """A published network: `parameters`, and `means` as `figures` returns them; `source` names paper and table."""

    name: str
    parameters: int
    means: dict[str, dict[str, float]]
    source: str


def peers(scale: int) -> list[Peer]:
    """Lightweight networks of others at a scale, with PSNR and SSIM on Y as published (`peers.csv`)."""
    with resources.files("dlgsanet.evaluation").joinpath("peers.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["scale"] == str(scale)]
    found = []
    for row in rows:
        cells = {name: cell.split("/") for name, cell in row.items() if "/" in cell and name != "source"}
        means = {name: {"psnr": float(psnr), "ssim": float(ssim)} for name, (psnr, ssim) in cells.items()}
        found.append(Peer(row["network"], 1000 * int(row["params [K]"]), means, row["source"]))
    return sorted(found, key=lambda peer: peer.parameters)


def sources(scale: int) -> str:
    """Where the figures of `peers` come from, in one sentence without its full stop."""
    names: dict[str, list[str]] = {}
    for peer in peers(scale):
        names.setdefault(peer.source, []).append(peer.name)
    return "; ".join(f"{', '.join(of)}: {source}" for source, of in names.items())
