"""The paper's figures (DLGSANet, ICCV 2023, arXiv 2301.02031)."""

import csv
from importlib import resources


def figures(size: str, scale: int) -> dict[str, dict[str, float]]:
    """The paper's mean PSNR and SSIM on Y: test set -> metric -> value."""
    with resources.files("dlgsanet.evaluation").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["scale"]) == (size, str(scale))]
    return {row["data set"]: {"psnr": float(row["psnr"]), "ssim": float(row["ssim"])} for row in rows}
