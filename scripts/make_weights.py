"""Make the shipped weights again from a folder of photographs: docs/model_zoo.md tells with which ones and how long.

  python scripts/make_weights.py --photos PHOTOS --valid PHOTOS_TO_VALIDATE_ON --scales 2 3 4

For each scale the stages of its recipe (option files in options/train) run one after the other, each going on where it
was stopped; then the averaged weights go to weights/DLGSANet_Tiny_x{scale}.safetensors with what is to be told of
them, and the losses and validation scores to docs/training/DLGSANet_Tiny_x{scale}.csv and .png. Of a stage that was
trained in another checkout, whose weights this one began with, the rows that stand there are kept.
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

# The stages of each scale, first to last; x3 and x4 start from x2 after its third stage.
RECIPES = {
    2: [
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2_scratch_img_size_32_lr1e_3",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2_continued_img_size_32_lr5e_4",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2_longer_img_size_32_lr1e_3",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2_final_img_size_48_lr5e_4",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2_further_img_size_48_lr1e_3",
    ],
    3: [
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx3_from_x2_img_size_48_lr1e_3",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx3_further_img_size_48_lr1e_3",
    ],
    4: [
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx4_from_x2_img_size_48_lr1e_3",
        "train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx4_further_img_size_48_lr1e_3",
    ],
}
TRAINING_DATA = (
    "399 photographs of BSDS500 train and test (research use; without 302003, which is Set5's woman), "
    "143 of Unsplash (Unsplash licence) and of Ubuntu's wallpapers (CC BY-SA 3.0), shrunk by MATLAB's bicubic rule"
)


PAUSE = 900  # seconds without a word after which a run was not working


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--valid", type=Path, required=True, help="folder of photographs to validate on")
    parser.add_argument("--scales", type=int, nargs="+", choices=RECIPES, default=list(RECIPES))
    arguments = parser.parse_args()
    scales = [str(scale) for scale in arguments.scales]
    for folder, name in ((arguments.photos, "Photos542"), (arguments.valid, "DIV2K_crops")):
        dlgsanet("data", "folder", str(folder), "--name", name, "--scales", *scales)
    for scale in arguments.scales:
        for stage in RECIPES[scale]:
            dlgsanet("train", "-opt", f"options/train/{stage}.yml", "--auto-resume")
        release(scale)


def dlgsanet(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dlgsanet", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def release(scale: int) -> None:
    """Write the weights of the last stage with their metadata, and the curves of all stages."""
    name = f"DLGSANet_Tiny_x{scale}"
    options = [load_yaml(f"options/train/{stage}.yml") for stage in RECIPES[scale]]
    rows = curves(RECIPES[scale], Path("docs/training", f"{name}.csv"))
    last_weights = Path("experiments", RECIPES[scale][-1], "models/net_g_latest.pth")
    state = read_checkpoint(last_weights, "params_ema").state
    network = {key: value for key, value in options[-1]["network_g"].items() if key != "type"}
    metadata = {
        "scale": str(scale),
        "training_data": TRAINING_DATA,
        "training": "; then ".join(described(o) for o in options),
        "hardware": "; ".join(dict.fromkeys(hardware_of(stage) for stage in RECIPES[scale] if trained_here(stage))),
        "hours": str(last(rows, "hours")),
        "figures": f"DIV2K 0801-0900 256x256 crops: {float(last(rows, 'psnr')):.2f} dB PSNR on Y",
        "date": time.strftime("%Y-%m-%d"),
    }
    write_checkpoint(f"weights/{name}.safetensors", state, network, metadata)
    write_curves(rows, Path("docs/training", name))


def trained_here(stage: str) -> bool:
    """Whether a stage was trained in this checkout."""
    return Path("tb_logger", stage).is_dir()


def hardware_of(stage: str) -> str:
    record = load_yaml(max(Path("experiments", stage).glob("record_*.yml"), key=lambda path: path.stat().st_mtime))
    processes = record["options"]["world_size"]
    return f"{processes} x {record['hardware']['device']}" if processes > 1 else record["hardware"]["device"]


def described(options: dict[str, Any]) -> str:
    data, train = options["datasets"]["train"], options["train"]
    patch = data["gt_size"] // options["scale"]
    start = "from x2 after its third stage, " if "_from_x2_" in options["name"] else ""
    return (
        f"{start}{train['total_iter']} iterations of {data['batch_size_per_gpu']} LR patches of {patch}x{patch}, "
        f"{train['optim_g']['type']} at {train['optim_g']['lr']}, EMA {train['ema_decay']}"
    )


def events(stage: str, tag: str) -> list:
    """What a run wrote to TensorBoard under a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(f"tb_logger/{stage}", size_guidance={"scalars": 0}).Reload().Scalars(tag)


def curves(stages: list[str], kept: Path) -> list[dict[str, Any]]:
    """Loss, validation PSNR and working hours so far, a row an iteration at which a loss or PSNR was written."""
    rows: list[dict[str, Any]] = []
    for stage in stages:
        if trained_here(stage):
            rows += curve(stage, float(last(rows, "hours") if rows else 0))
        else:
            with open(kept, newline="") as file:
                rows += [row for row in csv.DictReader(file) if row["stage"] == stage]
    return rows


def curve(stage: str, hours: float) -> list[dict[str, Any]]:
    """The rows of one run that began after so many hours; pauses between its starts do not count."""
    losses, validations = events(stage, "losses/l_pix"), events(stage, "metrics/DIV2K_crops/psnr")
    seconds = dict.fromkeys([losses[0].step], 0.0)
    for earlier, later in pairwise(losses):
        gap = later.wall_time - earlier.wall_time
        seconds[later.step] = seconds[earlier.step] + (gap if gap < PAUSE else 0)
    loss_at, psnr_at = ({event.step: event.value for event in found} for found in (losses, validations))
    return [
        {
            "stage": stage,
            "iteration": i,
            "hours": f"{hours + seconds[i] / 3600:.4f}" if i in seconds else "",
            "l_pix": f"{loss_at[i]:.5f}" if i in loss_at else "",
            "psnr": f"{psnr_at[i]:.4f}" if i in psnr_at else "",
        }
        for i in sorted(loss_at | psnr_at)
    ]


def last(rows: list[dict[str, Any]], column: str) -> str:
    return [row[column] for row in rows if row[column] != ""][-1]


def write_curves(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    past = 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        here = [row for row in rows if row["stage"] == stage]
        for axes, column in ((left, "l_pix"), (right, "psnr")):
            points = [(past + int(row["iteration"]), float(row[column])) for row in here if row[column] != ""]
            axes.plot(*zip(*points, strict=True), ".-", markersize=3, linewidth=1)
        past += int(here[-1]["iteration"])
    left.set(xlabel="iteration", ylabel="L1 loss", yscale="log")
    right.set(xlabel="iteration", ylabel="validation PSNR (dB)")
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"make_weights: error: {error}")
