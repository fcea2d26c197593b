"""Make the included weights from a folder of photographs; docs/model_zoo.md describes them.

  python scripts/make_weights.py --photos PHOTOS --valid VALIDATION --scales 2 3 4
  python scripts/make_weights.py --photos PHOTOS --valid VALIDATION --scales 2 --now
  python scripts/make_weights.py --photos PHOTOS --valid VALIDATION --scales 2 --from FILE

Each scale has one recipe, an option file in options/train. x2 starts as a linear filter, x3 and x4 start from the
weights of x2, with a last convolution that is computed; `--from` starts from other weights. The run trains at a
constant rate to its last iteration. Then a branch of the run lets the rate decay (`dlgsanet train --decay-now`). With
`--now` the branch starts from the newest checkpoint, and the run can continue later. The same command continues what
was interrupted.

The averaged weights of the branch are written to weights/DLGSANet_Tiny_x{scale}.safetensors, with their history as
metadata. Losses and validation scores are written to docs/training/DLGSANet_Tiny_x{scale}.csv and .png. If the run
started from weights of the same scale, they follow the rows that were there when it started.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from dlgsanet.archs.checkpoint import read_checkpoint, write_checkpoint
from dlgsanet.cli import run
from dlgsanet.errors import UserError
from dlgsanet.options.parse import load_yaml
from dlgsanet.signals import stop_with_the_parent

RECIPES = {
    scale: f"train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx{scale}_constant_img_size_64_lr1e_3" for scale in (2, 3, 4)
}
TRAINING_DATA = (
    "399 photographs of BSDS500 train and test (research use; without 302003, which is Set5's woman), "
    "143 of Unsplash (Unsplash licence) and of Ubuntu's wallpapers (CC BY-SA 3.0), shrunk by MATLAB's bicubic rule"
)
COLUMNS = ("stage", "iteration", "hours", "l_pix", "psnr", "below_bicubic")
COPY_OF = "copy_of"  # the file, in the metadata of the copy
PAUSE = 900  # seconds; a longer gap between two log lines was a pause


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
    parser.add_argument("--valid", type=Path, required=True, help="folder of photographs to validate on")
    parser.add_argument("--scales", type=int, nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE", help="start from these weights; one scale only"
    )
    parser.add_argument("--decay", type=int, default=8000, help="iterations of the decay; default: 8000")
    parser.add_argument(
        "--force-yml", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe, as in `dlgsanet train`"
    )
    parser.add_argument("--now", action="store_true", help="branch from the newest checkpoint; do not train before")
    arguments = parser.parse_args(argv)
    if arguments.start and len(arguments.scales) > 1:
        parser.error("--from: name one scale with --scales")
    scales = [str(scale) for scale in arguments.scales]
    for folder, name in ((arguments.photos, "Photos542"), (arguments.valid, "DIV2K_crops")):
        dlgsanet("data", "folder", str(folder), "--name", name, "--scales", *scales)
    for scale in arguments.scales:
        file = Path(f"options/train/{RECIPES[scale]}.yml")
        start = copy_of_start(scale, arguments.start or load_yaml(file)["path"]["pretrain_network_g"])
        from_start = [f"path:pretrain_network_g={start}"] if start else []
        if arguments.start:
            from_start.append("train:network_init=random")  # all weights are those of the file
        changes = from_start + arguments.force_yml
        command = ["train", "-opt", str(file), *(["--force-yml", *changes] if changes else [])]
        if not arguments.now:
            dlgsanet(*command, "--auto-resume")
        dlgsanet(*command, "--decay-now", str(arguments.decay))
        release(scale, newest_branch(RECIPES[scale]), start)
    return 0


def copy_of_start(scale: int, weights: Path | str | None) -> Path | None:
    """The weights that a run starts from, or started from: a copy, since a release may overwrite the file itself.

    Next to it is a copy of the rows that lead to these weights, if they are of the same scale. Copies are made when the
    run begins. A run that has begun keeps them, since the file may have been overwritten by a release of it.

    Args:
        scale: of the recipe.
        weights: the file to start from.

    Raises:
        UserError: the run has begun with weights of another file.
    """
    run = Path("experiments", RECIPES[scale])
    copy = run.with_name(f"{run.name}_start.safetensors")
    if any(run.glob("training_states/*.state")):
        before = read_checkpoint(copy).metadata.get(COPY_OF, weights) if copy.exists() else "no weights"
        if weights and Path(before).resolve() != Path(weights).resolve():
            raise UserError(f"{run} began from {before}, not from {weights}; to begin again, move {run} away")
        return copy if copy.exists() else None
    for old in (copy, copy.with_suffix(".csv")):
        old.unlink(missing_ok=True)
    if not weights:
        return None
    found = read_checkpoint(weights)
    rows = csv_file(scale)
    copy.parent.mkdir(exist_ok=True)
    if found.metadata.get("scale") == str(scale) and rows.exists():
        shutil.copy(rows, copy.with_suffix(".csv"))
    write_checkpoint(copy, found.state, metadata=found.metadata | {COPY_OF: str(weights)})
    return copy


def csv_file(scale: int) -> Path:
    return Path("docs/training", f"DLGSANet_Tiny_x{scale}.csv")


def dlgsanet(*arguments: str) -> None:
    command = [sys.executable, "-m", "dlgsanet", *arguments]
    with subprocess.Popen(command, preexec_fn=stop_with_the_parent) as process:
        while process.poll() is None:
            with suppress(KeyboardInterrupt):  # the command has it too: a training saves, and ends
                process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def newest_branch(run: str) -> str:
    """Name of the branch of a run that started last."""
    finished = [path.parents[1].name for path in Path("experiments").glob(f"{run}_decay_*/models/net_g_latest.pth")]
    return max(finished, key=branched_at)


def branched_at(branch: str) -> int:
    return int(branch.rpartition("_")[2])


def release(scale: int, branch: str, start: Path | None) -> None:
    """Write the weights of a branch with their history, and the curves that lead to them."""
    name = f"DLGSANet_Tiny_x{scale}"
    options = load_yaml(Path("experiments", branch, f"{branch}.yml"))
    before = read_checkpoint(start).metadata if start else {}
    stages = rows_of(start.with_suffix(".csv")) if start else []
    rows = curves(RECIPES[scale], branch, stages, float(before.get("hours", 0)) if stages else 0.0)
    state = read_checkpoint(Path("experiments", branch, "models/net_g_latest.pth"), "params_ema").state
    network = {key: value for key, value in options["network_g"].items() if key != "type"}
    metadata = {
        "scale": str(scale),
        "training_data": TRAINING_DATA,
        "training": f"{history(before, scale)}; then {described(options)}",
        "hardware": "; then ".join(dict.fromkeys([before["hardware"]] if stages else []) | {hardware_of(branch): None}),
        "hours": last(rows, "hours"),
        "figures": f"DIV2K 0801-0900 256x256 crops: {float(last(rows, 'psnr')):.2f} dB PSNR on Y",
        "date": time.strftime("%Y-%m-%d"),
    }
    write_checkpoint(f"weights/{name}.safetensors", state, network, metadata)
    write_curves(rows, csv_file(scale))


def history(start: dict[str, str], scale: int) -> str:
    """How the weights that a run started from were trained, from their metadata; empty: it started from none."""
    if not start:
        return "started as a linear filter"
    training = start.get("training", "no history")
    return (
        training if start.get("scale") == str(scale) else f"the body of weights of x{start.get('scale')} ({training})"
    )


def hardware_of(run: str) -> str:
    record = load_yaml(max(Path("experiments", run).glob("record_*.yml"), key=lambda path: path.stat().st_mtime))
    processes = record["options"]["world_size"]
    return f"{processes} x {record['hardware']['device']}" if processes > 1 else record["hardware"]["device"]


def described(branch: dict[str, Any]) -> str:
    data, train = branch["datasets"]["train"], branch["train"]
    patch = data["gt_size"] // branch["scale"]
    teacher = train.get("teacher_opt")
    target = f", {teacher['share']} of the loss towards {Path(teacher['path']).stem}" if teacher else ""
    return (
        f"{train['total_iter']} iterations of {data['batch_size_per_gpu']} LR patches of {patch}x{patch}, "
        f"{train['optim_g']['type']} at {train['optim_g']['lr']}, decayed to 0 over the last "
        f"{train['scheduler']['decay_iter']}, EMA {train['ema_decay']}{target}"
    )


def events(run: str, tag: str) -> list[Any]:
    """The scalars of a run in TensorBoard under a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(f"tb_logger/{run}", size_guidance={"scalars": 0}).Reload()
    return found.Scalars(tag) if tag in found.Tags()["scalars"] else []


def rows_of(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def curves(run: str, branch: str, before: list[dict[str, Any]], hours: float) -> list[dict[str, Any]]:
    """Rows of the stages before, of a run as far as its branch, and of the branch."""
    rows = curve(run, hours, branched_at(branch))
    return before + rows + curve(branch, float(last(rows, "hours")))


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
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    past = 0
    for stage, of_stage in groupby(rows, key=lambda row: row["stage"]):
        here = list(of_stage)
        offset = past - branch_start(stage)
        for axes, column in ((left, "l_pix"), (right, "psnr")):
            points = [(offset + int(row["iteration"]), float(row[column])) for row in here if row[column] != ""]
            x, y = zip(*points, strict=True) if points else ((), ())  # a short stage may have no validation
            axes.plot(x, y, ".-", markersize=3, linewidth=1)
        past = offset + int(here[-1]["iteration"])
    left.set(xlabel="iteration", ylabel="L1 loss", yscale="log")
    right.set(xlabel="iteration", ylabel="validation PSNR (dB)")
    figure.savefig(path.with_suffix(".png"), dpi=110)


def branch_start(stage: str) -> int:
    """A branch counts its iterations on from its run's; every other stage counts from 0."""
    return branched_at(stage) if "_decay_" in stage else 0


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
