"""The results page: one self-contained HTML file per scale. Its layout and behaviour are in `page.html`."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dlgsanet.data.images import read_image
from dlgsanet.data.pairs import Pair
from dlgsanet.evaluation.benchmark import Outcome, picture_path
from dlgsanet.evaluation.crops import Crop, best_crop
from dlgsanet.evaluation.published import figures, peers, sources
from dlgsanet.evaluation.report import as_json
from dlgsanet.evaluation.rows import BICUBIC
from dlgsanet.files import write_whole
from dlgsanet.metrics import psnr

WHOLE_BUDGET = 14_000_000  # bytes of base64 of the whole pictures, so that a page stays below 20 MB
QUALITIES = (90, 80, 70, 60, 50, 35, 20)  # of WebP, tried in turn
PICTURES_PER_SET = 10


def write_page(outcome: Outcome, metrics: tuple[str, ...], output: Path, published: bool = False) -> Path:
    """Write `x4.html` with the pictures that `run_scale` wrote below `output`.

    With `published` the page also shows the published figures of other networks. Of test sets with more pictures it
    shows the `PICTURES_PER_SET` on which the PSNR of the methods differs most.

    Raises:
        UserError: a picture cannot be read, or the page cannot be written.
    """
    shown = [
        (dataset, pair) for dataset, pairs in outcome.pairs.items() for pair in _most_telling(outcome, dataset, pairs)
    ]
    quality, wholes = _fitting_wholes(outcome, output, shown)
    pictures = [_picture(outcome, output, *which) | {"whole": wholes[number]} for number, which in enumerate(shown)]
    data = {key: value for key, value in as_json(outcome).items() if key != "data"} | {  # pages may be given to others
        "metrics": metrics,
        "sets": list(outcome.pairs),
        "paper": _paper_points(outcome),
        "published": [
            {"name": f"{peer.name} (published)", **peer.cost, "means": peer.means}
            for peer in (peers(outcome.scale, outcome.pairs) if published else ())
        ],
        "sources": sources(outcome.scale, outcome.pairs),
        "pictures": pictures,
        "quality": quality,
        "left out": sum(map(len, outcome.pairs.values())) - len(shown),
    }
    page = resources.files("dlgsanet.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    text = json.dumps(data).replace("<", "\\u003c")  # "<" would let a name end the script element
    path = output / f"x{outcome.scale}.html"
    write_whole(path, page.replace("{{scale}}", str(outcome.scale)).replace("{{data}}", text).encode())
    return path


def _most_telling(outcome: Outcome, dataset: str, pairs: list[Pair]) -> list[Pair]:
    values: dict[str, list[float]] = {}
    for row in outcome.rows:
        if row.dataset == dataset:
            values.setdefault(row.image, []).append(row.scores["psnr"])
    most = max(map(len, values.values()), default=1)  # a method that has failed has no scores
    scored = [pair for pair in pairs if len(values.get(pair.name, [])) == most]
    chosen = sorted(scored, key=lambda p: min(values[p.name]) - max(values[p.name]))[:PICTURES_PER_SET]
    return sorted(chosen, key=lambda pair: pair.name)


def outputs_of(outcome: Outcome, output: Path, dataset: str, pair: Pair) -> dict[str, np.ndarray]:
    """What every method that has scores of a picture made of it, uint8 [H, W, 3]."""
    names = [row.method for row in outcome.rows if (row.dataset, row.image) == (dataset, pair.name)]
    return {name: read_image(picture_path(output, outcome.scale, name, dataset, pair.name)) for name in names}


def telling_crop(outputs: Mapping[str, np.ndarray], original: np.ndarray, scale: int) -> Crop:
    """`best_crop` among networks; with one network, between it and bicubic."""
    networks = [image for name, image in outputs.items() if name != BICUBIC]
    return best_crop(networks if len(networks) > 1 else list(outputs.values()), original, scale)


def _picture(outcome: Outcome, output: Path, dataset: str, pair: Pair) -> dict[str, Any]:
    lr, hr = pair.read(outcome.scale)
    outputs = outputs_of(outcome, output, dataset, pair)
    crop = telling_crop(outputs, hr, outcome.scale)
    original = crop.of(hr)
    crops: list[dict[str, Any]] = [{"name": "low resolution", "src": _webp(crop.of(lr, outcome.scale))}]
    for name, image in outputs.items():
        crops.append({"name": name, "src": _webp(crop.of(image)), "psnr": psnr(crop.of(image), original, 0)})
    crops.append({"name": "original", "src": _webp(original)})
    height, width = hr.shape[:2]
    return {
        "set": dataset,
        "image": pair.name,
        "width": width,
        "height": height,
        "crop": {"x": crop.x, "y": crop.y, "side": crop.side},
        "crops": crops,
    }


def _fitting_wholes(
    outcome: Outcome, output: Path, shown: list[tuple[str, Pair]]
) -> tuple[int, list[list[dict[str, str]]]]:
    """Every method's whole pictures and the originals, at the best quality that fits into the budget."""

    def encoded(quality: int) -> Iterator[list[dict[str, str]]]:
        for dataset, pair in shown:
            images = outputs_of(outcome, output, dataset, pair) | {"original": pair.read(outcome.scale)[1]}
            yield [{"name": name, "src": _webp(image, quality)} for name, image in images.items()]

    for quality in QUALITIES:
        wholes, size = [], 0
        for images in encoded(quality):
            wholes.append(images)
            size += sum(len(image["src"]) for image in images)
            if size > WHOLE_BUDGET and quality != QUALITIES[-1]:
                break
        else:
            break
    return quality, wholes


def _webp(image: np.ndarray, quality: int | None = None) -> str:
    """A data URL; without a quality lossless."""
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(image).save(buffer, format="WEBP", method=4, **settings)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _paper_points(outcome: Outcome) -> list[dict[str, Any]]:
    """The paper's figures of the published networks that are on the page."""
    return [
        {"name": f"{e.size} (paper)", "means": figures(e.size, e.scale), "of": e.name}
        for e in outcome.entries
        if e.size and not e.ensemble
    ]
