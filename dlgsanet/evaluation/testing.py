"""`dlgsanet test`: the scores and pictures of a network on the test sets of an option file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlgsanet.data.images import png_bytes
from dlgsanet.data.pairs import Pair, check_metrics, find_pairs
from dlgsanet.data.parallel import for_each
from dlgsanet.errors import UserError, within
from dlgsanet.evaluation.networks import network_of
from dlgsanet.evaluation.rows import BICUBIC, Row, every_image, summary
from dlgsanet.evaluation.scoring import Metric, Picture, bicubic, metric, score, standard_metrics, super_resolve
from dlgsanet.evaluation.tables import terminal_width
from dlgsanet.files import check_can_write, write_whole
from dlgsanet.options.check import DATA_SETS
from dlgsanet.progress import Counter


def run_test(options: dict[str, Any], allow_random_weights: bool = False) -> str:
    """Test the network of an option file (checked and completed), and write to `results/NAME`.

    `scores.csv` and `scores.md` have the scores of every picture. With `val: save_img` the pictures are in
    `visualization/`.

    Returns:
        The text for the terminal: the table of means, and the names of the files.

    Raises:
        UserError: no weights are named and random ones are not allowed, or weights or test sets have errors. All images
            are read before the network runs; each one that cannot be used is one line of the message.
    """
    scale, method, validation = options["scale"], options["name"], options["val"]
    described = validation.get("metrics") or {}
    metrics = {name: metric(entry) for name, entry in described.items()} or standard_metrics(scale)
    with within(options["option_file"]):
        if not options["path"].get("pretrain_network_g") and not allow_random_weights:
            raise UserError(
                "path.pretrain_network_g is empty: a network of random weights would be tested; "
                "name its weights, or allow this with --random-weights"
            )
        datasets = sets_to_test([opt for _, opt in sorted(options["datasets"].items())], metrics, scale)
        network, device = network_of(options)

    def target(dataset: str, pair: Pair) -> Path:
        name = f"{Path(pair.lq.name).stem}_{validation.get('suffix') or method}.png"
        return Path(options["path"]["visualization"], dataset, name)

    check_can_write(Path(options["path"]["results_root"]) / "scores.csv")
    if validation.get("save_img"):
        for dataset, pairs in datasets.items():
            check_can_write(max((target(dataset, pair) for pair in pairs), key=lambda path: len(path.name.encode())))

    def finish(dataset: str, picture: Picture) -> list[Row]:
        if validation.get("save_img"):
            gray = picture.output.shape[2] == 1
            png = png_bytes(picture.output[..., 0] if gray else picture.output)
            write_whole(target(dataset, picture.pair), png)
        images = {BICUBIC: bicubic(picture.lr, scale), method: picture.output}
        return [Row(dataset, picture.pair.name, by, score(picture, image, metrics)) for by, image in images.items()]

    colors = {opt["name"]: opt.get("color") for opt in options["datasets"].values()}
    rows: list[Row] = []
    for dataset, pairs in datasets.items():
        with Counter(dataset, len(pairs), "pictures") as counter:
            for picture in counter.each(super_resolve(network, pairs, scale, device, color=colors[dataset])):
                rows += finish(dataset, picture)
    return _report(rows, list(metrics), Path(options["path"]["results_root"]), f"{method}, ×{scale}")


def sets_to_test(
    datasets: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric], scale: int
) -> dict[str, list[Pair]]:
    """The pairs of test sets by name, after all images were read and the metrics tried on the smallest of each set.

    Raises:
        UserError: see `pairs_to_test`, `check_images` and `check_metrics`.
    """
    found = {opt["name"]: pairs_to_test(opt) for opt in datasets}
    check_images(found, scale)
    for pairs in found.values():
        check_metrics(metrics, min(pairs, key=lambda pair: min(pair.sizes(scale)[0])), scale)
    return found


def pairs_to_test(opt: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a test set of an option file (completed: it has a `name`).

    Raises:
        UserError: as `find_pairs`, or options that testing cannot follow.
    """
    where, type_name = f"data set {opt['name']}", opt.get("type", "PairedImageDataset")
    if type_name not in DATA_SETS:
        how = "write its images to folders, and set type: PairedImageDataset"
        raise UserError(f"{where}: type: pairs of image files are tested, not samples of {type_name}; {how}")
    if not opt.get("dataroot_gt"):
        raise UserError(f"{where}: has no originals to compare with (dataroot_gt); see `dlgsanet upscale`")
    if unmet := [key for key in ("mean", "std") if opt.get(key) is not None]:
        raise UserError(f"{where}: {', '.join(unmet)}: not for testing; images are tested as they are")
    try:
        return find_pairs(opt)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_images(datasets: dict[str, list[Pair]], scale: int) -> None:
    """Read every image once.

    Raises:
        UserError: images that cannot be read or whose sizes do not fit; one line for each.
    """

    def check(pair: Pair) -> None:
        pair.sizes(scale)
        pair.read(scale)

    _, faults = for_each(check, [pair for pairs in datasets.values() for pair in pairs], "reading")
    if len(faults) > 1:
        faults.append(f"{len(faults)} images cannot be used, see above; repair or remove them")
    if faults:
        raise UserError("\n".join(faults))


def _report(rows: list[Row], metrics: list[str], folder: Path, title: str) -> str:
    table, images = summary(rows, metrics), every_image(rows, metrics)
    write_whole(folder / "scores.csv", images.csv().encode())
    markdown = f"# {title}\n\n{table.markdown()}\n## Every image\n\n{images.markdown()}"
    write_whole(folder / "scores.md", markdown.encode())
    files = "\n".join(f"  {os.path.relpath(folder / name)}" for name in ("scores.csv", "scores.md"))
    return f"{title}\n\n{table.text(terminal_width())}\n\nEvery image's scores:\n{files}"
