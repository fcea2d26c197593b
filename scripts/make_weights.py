"""Make the shipped weights from a folder of photographs; docs/model_zoo.md says from which ones and how long it takes.

  python scripts/make_weights.py --photos PHOTOS --valid PHOTOS_TO_VALIDATE_ON --scales 2 3 4
  python scripts/make_weights.py --photos PHOTOS --valid PHOTOS_TO_VALIDATE_ON --scales 2 --now

Each scale has one recipe, an option file in options/train. Its run trains at a constant rate to the end, or is stopped
before; then a branch of it lets the rate decay (`dlgsanet train --decay-now`). With `--now` the branch starts from the
newest checkpoint at once, and the run can go on later. Whatever was interrupted is continued.

The averaged weights of the branch go to weights/DLGSANet_Tiny_x{scale}.safetensors with a description. Losses and
validation scores go to docs/training/DLGSANet_Tiny_x{scale}.csv and .png; rows there of earlier stages are kept.
"""

import argparse
import csv
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlgsanet.archs.checkpoint import read_checkpoint, write_checkpoint
from dlgsanet.errors import UserError
from dlgsanet.options.parse import load_yaml

RECIPES = {
    scale: f"train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx{scale}_constant_img_size_64_lr1e_3" for scale in (2, 3, 4)
}
# What the weights that a recipe starts from had behind them.
STARTS = {
    2: "2600 iterations of 8 LR patches of 32x32, Adam at 0.001, EMA 0.995; then 1200 iterations of 8 LR patches of "
    "32x32, Adam at 0.0005, EMA 0.995; then 8000 iterations of 8 LR patches of 32x32, Adam at 0.001, EMA 0.998; then "
    "2000 iterations of 8 LR patches of 48x48, Adam at 0.0005, EMA 0.998; then 8000 iterations of 4 LR patches of "
    "48x48, Adam at 0.001, EMA 0.998",
    3: "the body of DLGSANet_Tiny_x2",
    4: "the body of DLGSANet_Tiny_x2",
}
TRAINING_DATA = (
    "399 photographs of BSDS500 train and test (research use; without 302003, which is Set5's woman), "
    "143 of Unsplash (Unsplash licence) and of Ubuntu's wallpapers (CC BY-SA 3.0), shrunk by MATLAB's bicubic rule"
)
COLUMNS = ("stage", "iteration", "hours", "l_pix", "psnr", "below_bicubic")
PAUSE = 900  # seconds between two log lines after which a run was not working


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--valid", type=Path, required=True, help="folder of photographs to validate on")
    parser.add_argument("--scales", type=int, nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--decay", type=int, default=8000, help="iterations of the decay; default: 8000")
    parser.add_argument("--now", action="store_true", help="branch from the newest checkpoint; do not train on before")
    arguments = parser.parse_args()
    scales = [str(scale) for scale in arguments.scales]
    for folder, name in ((arguments.photos, "Photos542"), (arguments.valid, "DIV2K_crops")):
        dlgsanet("data", "folder", str(folder), "--name", name, "--scales", *scales)
    for scale in arguments.scales:
        file = f"options/train/{RECIPES[scale]}.yml"
        if not arguments.now:
            dlgsanet("train", "-opt", file, "--auto-resume")
        dlgsanet("train", "-opt", file, "--decay-now", str(arguments.decay))
        release(scale, newest_branch(RECIPES[scale]))


def dlgsanet(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dlgsanet", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def newest_branch(run: str) -> str:
    """Name of the branch of a run that started last."""
    finished = [path.parents[1].name for path in Path("experiments").glob(f"{run}_decay_*/models/net_g_latest.pth")]
    return max(finished, key=branched_at)


def branched_at(branch: str) -> int:
    return int(branch.rpartition("_")[2])


def release(scale: int, branch: str) -> None:
    """Write the weights of a branch with a description, and the curves that lead to it."""
    name = f"DLGSANet_Tiny_x{scale}"
    options = load_yaml(Path("experiments", branch, f"{branch}.yml"))
    rows = curves(RECIPES[scale], branch, Path("docs/training", f"{name}.csv"))
    state = read_checkpoint(Path("experiments", branch, "models/net_g_latest.pth"), "params_ema").state
    network = {key: value for key, value in options["network_g"].items() if key != "type"}
    metadata = {
        "scale": str(scale),
        "training_data": TRAINING_DATA,
        "training": f"{STARTS[scale]}; then {described(options)}",
        "hardware": hardware_of(branch),
        "hours": str(last(rows, "hours")),
        "figures": f"DIV2K 0801-0900 256x256 crops: {float(last(rows, 'psnr')):.2f} dB PSNR on Y",
        "date": time.strftime("%Y-%m-%d"),
    }
    write_checkpoint(f"weights/{name}.safetensors", state, network, metadata)
    write_curves(rows, Path("docs/training", name))


def hardware_of(run: str) -> str:
    record = load_yaml(max(Path("experiments", run).glob("record_*.yml"), key=lambda path: path.stat().st_mtime))
    processes = record["options"]["world_size"]
    return f"{processes} x {record['hardware']['device']}" if processes > 1 else record["hardware"]["device"]


def described(branch: dict[str, Any]) -> str:
    data, train = branch["datasets"]["train"], branch["train"]
    patch = data["gt_size"] // branch["scale"]
    return (
        f"{train['total_iter']} iterations of {data['batch_size_per_gpu']} LR patches of {patch}x{patch}, "
        f"{train['optim_g']['type']} at {train['optim_g']['lr']}, decayed to 0 over the last "
        f"{train['scheduler']['decay_iter']}, EMA {train['ema_decay']}"
    )


def events(run: str, tag: str) -> list:
    """What a run wrote to TensorBoard under a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(f"tb_logger/{run}", size_guidance={"scalars": 0}).Reload()
    return found.Scalars(tag) if tag in found.Tags()["scalars"] else []


def curves(run: str, branch: str, kept: Path) -> list[dict[str, Any]]:
    """Rows of the stages before the recipe, of its run as far as the branch, and of the branch."""
    with open(kept, newline="") as file:
        before = [row for row in csv.DictReader(file) if not row["stage"].startswith(run)]
    rows = before if run == RECIPES[2] else []  # the other scales start from x2
    rows += curve(run, float(last(rows, "hours") if rows else 0), branched_at(branch))
    return rows + curve(branch, float(last(rows, "hours")))


def curve(run: str, hours: float, end: float = float("inf")) -> list[dict[str, Any]]:
    """Losses, scores and working hours of a run that began after so many hours; pauses do not count."""
    found = {
        "l_pix": events(run, "losses/l_pix"),
        "psnr": events(run, "metrics/DIV2K_crops/psnr"),
        "below_bicubic": events(run, "metrics/DIV2K_crops/below_bicubic"),
    }
    seconds = dict.fromkeys([found["l_pix"][0].step], 0.0)
    for earlier, later in pairwise(found["l_pix"]):
        gap = later.wall_time - earlier.wall_time
        seconds[later.step] = seconds[earlier.step] + (gap if gap < PAUSE else 0)
    values = {column: {event.step: event.value for event in found[column]} for column in found}
    formats = {"l_pix": "{:.5f}", "psnr": "{:.4f}", "below_bicubic": "{:.0f}"}
    return [
        {"stage": run, "iteration": i, "hours": f"{hours + seconds[i] / 3600:.4f}" if i in seconds else ""}
        | {column: formats[column].format(values[column][i]) if i in values[column] else "" for column in formats}
        for i in sorted(set().union(*values.values()))
        if i <= end
    ]


def last(rows: list[dict[str, Any]], column: str) -> str:
    return [row[column] for row in rows if row[column] != ""][-1]


def write_curves(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    past = 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        here = [row for row in rows if row["stage"] == stage]
        offset = past - branch_start(stage)
        for axes, column in ((left, "l_pix"), (right, "psnr")):
            points = [(offset + int(row["iteration"]), float(row[column])) for row in here if row[column] != ""]
            axes.plot(*zip(*points, strict=True), ".-", markersize=3, linewidth=1)
        past = offset + int(here[-1]["iteration"])
    left.set(xlabel="iteration", ylabel="L1 loss", yscale="log")
    right.set(xlabel="iteration", ylabel="validation PSNR (dB)")
    figure.savefig(path.with_suffix(".png"), dpi=110)


def branch_start(stage: str) -> int:
    """A branch counts its iterations on from its run's; every other stage counts from 0."""
    return branched_at(stage) if "_decay_" in stage else 0


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_weights: error: {error}")
