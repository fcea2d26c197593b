"""Networks on compressed photographs: PSNR, SSIM and, where pyiqa has its weights, LPIPS, over the quality of JPEG.

python scripts/evaluate_compressed.py Tiny Tiny_jpeg --scale 2 --data datasets/Valid [--qualities 30 50 70 90]

The LR images of a data root (`dlgsanet data` makes it: HR, LR_bicubic) are compressed by Pillow with colours at half
the resolution, and upscaled: by bicubic interpolation and by each network, a name of included weights or a file.
Uncompressed images are scored too. PSNR and SSIM are on Y, with as many pixels cropped at each edge as the scale. The
folder given by -o gets the table (Markdown), a score for each image (CSV), and crops of some images to look at (PNG).
"""

import argparse
import io
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLEAN = "none"  # in place of a quality
SIDE = 96  # pixels of a crop in the original


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="[NAME=]WEIGHTS", help="names of included weights, or files")
    parser.add_argument("--scale", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a data root of images that were never trained on")
    parser.add_argument("--qualities", type=int, nargs="+", default=[30, 50, 70, 90])
    parser.add_argument("--device")
    parser.add_argument("--pictures", type=int, default=4, help="on the sheet of crops, for each quality")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/compressed"))
    args = parser.parse_args(argv)
    if wrong := [quality for quality in args.qualities if not 1 <= quality <= 100]:
        parser.error(f"--qualities: {wrong[0]} is not from 1 to 100")
    if args.pictures < 1:
        parser.error(f"--pictures: {args.pictures} is not a whole number from 1 up")

    evaluate(args)
    return 0


def evaluate(args: argparse.Namespace) -> None:
    from dlgsanet.data.images import png_bytes
    from dlgsanet.data.pairs import check_sizes, find_pairs_in
    from dlgsanet.device import find_device
    from dlgsanet.errors import UserError
    from dlgsanet.evaluation.scoring import bicubic, score, super_resolve
    from dlgsanet.evaluation.tables import Table
    from dlgsanet.files import check_can_write, write_whole
    from dlgsanet.inference.loading import load_model

    device = find_device(args.device)
    named = [argument.rpartition("=")[::2] for argument in args.networks]
    names = ["bicubic", *(name or Path(file).stem for name, file in named)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two methods are called {twice[0]!r}; name them apart: NAME=WEIGHTS")
    networks = {name: load_model(file, args.scale, device) for name, (_, file) in zip(names[1:], named, strict=True)}
    pairs = find_pairs_in(args.data, args.scale)
    check_sizes(pairs, args.scale)
    check_can_write(args.output / f"x{args.scale}.md")
    measures = metrics(args.scale, str(device))
    rows: list[dict[str, object]] = []
    parts: list[np.ndarray] = []
    for quality in [*sorted(args.qualities), CLEAN]:
        inputs = pairs if quality == CLEAN else [compressed(pair, quality) for pair in pairs]
        outputs: dict[str, dict[str, np.ndarray]] = {pair.name: {} for pair in pairs}
        pictures = {}
        for name, network in networks.items():
            for picture in super_resolve(network, inputs, args.scale, device):
                pictures[picture.pair.name] = picture
                outputs[picture.pair.name] |= {
                    "bicubic": outputs[picture.pair.name].get("bicubic", bicubic(picture.lr, args.scale)),
                    name: picture.output,
                }
        for image, made in outputs.items():
            for name, output in made.items():
                scores = score(pictures[image], output, measures)
                rows.append({"quality": quality, "image": image, "method": name, **scores})
        print(f"quality {quality}: {len(pairs)} images", file=sys.stderr, flush=True)
        telling = sorted(outputs, key=lambda image: -spread(rows, quality, image))[: args.pictures]
        parts += [strip(pictures[image], outputs[image], args.scale, f"{image}, {quality}") for image in telling]
    text = table(rows, ["bicubic", *networks], list(measures))
    print(text)
    images = Table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    write_whole(args.output / f"x{args.scale}.md", text.encode())
    write_whole(args.output / f"x{args.scale}.csv", images.csv().encode())
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    write_whole(args.output / f"x{args.scale}.png", png_bytes(np.vstack(padded)))


def metrics(scale: int, device: str):
    from dlgsanet.errors import UserError
    from dlgsanet.evaluation.perceptual import perceptual_metric
    from dlgsanet.evaluation.scoring import standard_metrics

    found = standard_metrics(scale)
    try:
        found["lpips"] = perceptual_metric("lpips", device)
    except UserError as error:
        print(f"without LPIPS: {str(error).partition(': ')[2]}", file=sys.stderr)
    return found


def compressed(pair, quality: int):
    """The pair with its LQ image as a JPEG of this quality."""
    from dlgsanet.data.pairs import Pair
    from dlgsanet.data.sources import Source

    return Pair(pair.name, pair.gt, Source(pair.lq.name, pair.lq.file, partial(as_jpeg, pair, quality), alone=False))


def as_jpeg(pair, quality: int) -> bytes:
    from dlgsanet.data.images import read_rgb

    buffer = io.BytesIO()
    Image.fromarray(read_rgb(Path(pair.lq.name), pair.lq.read())).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def spread(rows: list[dict[str, object]], quality: object, image: str) -> float:
    """How far apart the methods' PSNR lies."""
    values = [row["psnr"] for row in rows if (row["quality"], row["image"]) == (quality, image)]
    return max(values) - min(values)


def table(rows: list[dict[str, object]], methods: list[str], measures: list[str]) -> str:
    """A line for each quality: the mean scores of each method."""
    from dlgsanet.evaluation.tables import Table, figure

    lines = []
    for quality in dict.fromkeys(row["quality"] for row in rows):
        lines.append(["not compressed" if quality == CLEAN else str(quality)])
        for method in methods:
            chosen = [row for row in rows if (row["quality"], row["method"]) == (quality, method)]
            means = {name: statistics.fmean(row[name] for row in chosen) for name in measures}
            lines[-1].append(" / ".join(figure(name, value) for name, value in means.items()))
    header = [f"JPEG quality ({len({row['image'] for row in rows})} images)", *methods]
    names = " / ".join(name.upper() for name in measures)
    return f"{Table(header, lines).markdown()}\n{names}, means over the images.\n"


def strip(picture, outputs: dict[str, np.ndarray], scale: int, title: str) -> np.ndarray:
    """The crop in which the methods differ most: of the input, of each method, of the original."""
    from dlgsanet.evaluation.crops import best_crop

    crop = best_crop(list(outputs.values()), picture.hr, scale, SIDE)
    enlarged = np.kron(crop.of(picture.lr, scale), np.ones((scale, scale, 1), np.uint8))
    cells = {title: enlarged} | {name: crop.of(output) for name, output in outputs.items()}
    cells["original"] = crop.of(picture.hr)
    side, gap, line = 2 * crop.side, 6, 14
    made = Image.new("RGB", (len(cells) * (side + gap), side + line + gap), "white")
    font = ImageFont.load_default(11)
    for number, (name, image) in enumerate(cells.items()):
        made.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (number * (side + gap), 0))
        ImageDraw.Draw(made).text((number * (side + gap), side), name, "black", font)
    return np.asarray(made)


if __name__ == "__main__":
    from dlgsanet.cli import run

    sys.exit(run("__main__:main", sys.argv[1:]))
