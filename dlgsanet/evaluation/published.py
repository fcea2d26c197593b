"""The paper's networks and figures (DLGSANet, ICCV 2023, arXiv 2301.02031)."""

import csv
import inspect
from collections.abc import Mapping
from importlib import resources
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "Tiny": {"dim": 48, "groups": 3, "blocks": 3},
    "Light": {"dim": 48, "groups": 4, "blocks": 3},
    "Large": {"dim": 90, "groups": 6, "blocks": 4},
}
SCALES = (2, 3, 4)


def size_options(size: str, scale: int) -> dict[str, Any]:
    """The `network_g` options (no `type`) of a published size."""
    shared = {"buildblock_type": "sparseedge", "upsampler": "pixelshuffledirect", "upscale": scale}
    return SIZES[size] | shared | {"tlc_kernel": {2: 96, 3: 72, 4: 48}[scale]}


def size_of(options: Mapping[str, Any]) -> str | None:
    """The published size (`Tiny`, `Light`, `Large`) that these options of a DLGSANet are, None if none."""
    from dlgsanet.archs.dlgsanet import DLGSANet

    defaults = {p.name: p.default for p in inspect.signature(DLGSANet).parameters.values()}
    without_effect = {"type": None, "input_resolution": None}
    given = defaults | dict(options) | without_effect
    for size in SIZES if options.get("upscale") in SCALES else ():
        if defaults | size_options(size, options["upscale"]) | without_effect == given:
            return size
    return None


def figures(size: str, scale: int) -> dict[str, dict[str, float]]:
    """The paper's mean PSNR and SSIM on Y: test set -> metric -> value."""
    with resources.files("dlgsanet.evaluation").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["scale"]) == (size, str(scale))]
    return {row["data set"]: {"psnr": float(row["psnr"]), "ssim": float(row["ssim"])} for row in rows}
