"""The benchmark's crops as a figure for a paper: PDF and PNG."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlgsanet.data.images import read_image
from dlgsanet.data.pairs import find_pairs_in
from dlgsanet.errors import ArgumentError, UserError, unknown
from dlgsanet.evaluation.benchmark import picture_path
from dlgsanet.evaluation.crops import Crop
from dlgsanet.evaluation.page import telling_crop
from dlgsanet.evaluation.plotting import FRAME, new_figure, write_figure
from dlgsanet.evaluation.rows import BICUBIC
from dlgsanet.evaluation.tables import figure as formatted


@dataclass(frozen=True)
class Panel:
    """One picture of the figure: the original, the crop, and each method's crop with the scores of the whole."""

    title: str
    original: np.ndarray
    crop: Crop
    crops: dict[str, np.ndarray]
    captions: dict[str, str]


def read_panel(
    results: Path,
    dataset: str,
    scale: int,
    image: str,
    methods: Sequence[str] | None = None,
    crop: Crop | None = None,
    data_root: Path | None = None,
) -> Panel:
    """A panel of pictures from the results of `dlgsanet benchmark`.

    Args:
        results: folder of the benchmark.
        dataset: name of the test set.
        image: name of the picture, without extension.
        methods: their names in the order of the panel; None: bicubic and all networks.
        crop: None: the crop in which the methods differ most.
        data_root: folder with the test set. None: where the benchmark read it.

    Raises:
        UserError: the results have no such scale, test set, picture or method, or the crop is not within the picture.
    """
    known = _read_results(results / f"x{scale}.json")
    rows = {r["method"]: r for r in known["images"] if (r["data set"], r["image"]) == (dataset, image)}
    if not rows:
        raise UserError(f"{results}/x{scale}.json: has no picture {image} of {dataset}")
    folder = data_root / dataset if data_root else Path(known.get("data", {}).get(dataset, f"datasets/{dataset}"))
    names = list(methods or rows)
    if wrong := [name for name in names if name not in rows]:
        raise ArgumentError("methods", unknown("method", wrong[0], rows))
    pair = next((pair for pair in find_pairs_in(folder, scale) if pair.name == image), None)
    if pair is None:
        raise UserError(f"{folder}: has no picture {image} any more")
    lr, hr = pair.read(scale)
    outputs = {name: read_image(picture_path(results, scale, name, dataset, image)) for name in names}
    chosen = crop or telling_crop(outputs, hr, scale)
    if chosen.of(hr).shape[:2] != (chosen.side, chosen.side):
        raise ArgumentError("crop", f"is not within the {hr.shape[1]}x{hr.shape[0]} pixels of {image}")
    captions = {n: f"{formatted('psnr', rows[n]['psnr'])} / {formatted('ssim', rows[n]['ssim'])}" for n in names}
    crops = {"LR": chosen.of(lr, scale)} | {name: chosen.of(output) for name, output in outputs.items()}
    return Panel(
        f"{dataset}: {image}, ×{scale}",
        hr,
        chosen,
        crops | {"original": chosen.of(hr)},
        captions | {"original": "PSNR / SSIM"},
    )


def _read_results(path: Path) -> Mapping[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run `dlgsanet benchmark` first") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a benchmark's results ({error})") from None
    rows = known.get("images") if isinstance(known, dict) else None
    needed = {"data set", "image", "method", "psnr", "ssim"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise UserError(f"{path}: not a benchmark's results")
    return known


def panel_files(stem: Path) -> list[Path]:
    """The files that `write_panels` writes."""
    return [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]


def write_panels(panels: Sequence[Panel], stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png, one panel below the other.

    Raises:
        UserError: they cannot be written.
    """
    heights = [_height(panel) for panel in panels]
    page = new_figure(WIDTH, sum(heights))
    parts = page.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for part, panel in zip(parts.ravel(), panels, strict=True):
        _draw(part, panel)
    for path in panel_files(stem):
        write_figure(page, path, dpi=300)
    return panel_files(stem)


WIDTH = 7.16  # inches: two columns of an IEEE page
WIDEST = 3.0  # width over height of the place for the whole picture; wider ones would leave no room for crops
_CAPTION, _TITLE, _GAP = 0.27, 0.18, 0.06  # inches: two lines below a crop, one below the whole picture, between


def _columns(panel: Panel) -> int:
    return -(-len(panel.crops) // 2)


def _sides(panel: Panel) -> tuple[float, float]:
    """Inches: the side of a crop and the width of the whole picture, so that both halves are equally high."""
    columns, aspect = _columns(panel), min(WIDEST, panel.original.shape[1] / panel.original.shape[0])
    # the whole picture's height is 2 crops, 2 captions and a gap, less its own title; widths add up to the page's
    fixed = 2 * _CAPTION + _GAP - _TITLE
    side = (WIDTH - aspect * fixed - (columns + 2) * _GAP) / (columns + 2 * aspect)
    return side, aspect * (2 * side + fixed)


def _height(panel: Panel) -> float:
    return 2 * (_sides(panel)[0] + _CAPTION) + 3 * _GAP


def _draw(part: Any, panel: Panel) -> None:
    from matplotlib.patches import Rectangle

    side, whole = _sides(panel)
    height = _height(panel)

    def place(left: float, top: float, wide: float, high: float) -> Any:
        axes = part.add_axes((left / WIDTH, 1 - (top + high) / height, wide / WIDTH, high / height))
        axes.set_axis_off()
        return axes

    axes = place(_GAP, _GAP, whole, height - 2 * _GAP - _TITLE)
    axes.imshow(panel.original, interpolation="antialiased")
    crop = panel.crop
    axes.add_patch(Rectangle((crop.x, crop.y), crop.side, crop.side, fill=False, edgecolor=FRAME, linewidth=1.2))
    axes.set_title(panel.title, y=0, pad=-10, fontsize=7)
    for number, (name, image) in enumerate(panel.crops.items()):
        row, column = divmod(number, _columns(panel))
        left = whole + 2 * _GAP + column * (side + _GAP)
        axes = place(left, _GAP + row * (side + _CAPTION + _GAP), side, side)
        axes.imshow(image, interpolation="nearest")
        caption = name if name != BICUBIC else "Bicubic"
        axes.text(0.5, -0.03, f"{caption}\n{panel.captions.get(name, '')}", transform=axes.transAxes, ha="center",
                  va="top", fontsize=6.5, linespacing=1.25)  # fmt: skip
