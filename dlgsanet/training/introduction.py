"""The first lines of the log: what the run is going to do, and with what."""

import logging
import math
import os
from typing import Any

import torch

from dlgsanet.data.parallel import usable_cores
from dlgsanet.device import threads
from dlgsanet.errors import counted
from dlgsanet.options.table import TRAIN
from dlgsanet.training.conditions import differences
from dlgsanet.training.resume import Position
from dlgsanet.training.validation import ValidationSet

SWITCHES = ("compile", "cuda_graph", "channels_last", "deterministic")

logger = logging.getLogger("dlgsanet")


def introduce(
    options: dict[str, Any],
    validation_sets: list[ValidationSet],
    batch_size: int,
    epoch_length: int,
    position: Position,
    before: dict[str, Any],
    now: dict[str, Any],
) -> None:
    """Log a few lines. The backend of the layers and the time that the run will take are only known, and logged,
    after its first iterations.

    Args:
        options: of the run.
        validation_sets: as built; their files were found and checked.
        batch_size: samples of an iteration, of all ranks.
        epoch_length: samples of an epoch.
        position: where the run starts.
        before, now: the conditions of the checkpoint, if any, and of this run (`dlgsanet.training.conditions`).
    """
    if options["rank"] != 0:
        return
    train = options["train"]
    name = options["datasets"]["train"]["name"]
    validation = "none"
    if validation_sets:
        names = ", ".join(f"{data.name} ({len(data)})" for data in validation_sets)
        validation = f"{names}, every {counted(options['val']['val_freq'], 'iteration')}"
    total = int(train["total_iter"])
    epochs = math.ceil(total * batch_size / epoch_length)
    samples = counted(batch_size, "sample")
    ranks = f"{counted(options['world_size'], 'rank')}, " if options["dist"] else ""
    idle = " (one of several GPUs: torchrun uses all)" if options["num_gpu"] > 1 and not options["dist"] else ""
    lines = {
        "Run": f"{options['name']}, {options['model_type']}, seed {options['manual_seed']}",
        "Folder": os.path.relpath(options["path"]["experiments_root"]),
        "Training": f"{name}: {counted(epoch_length, 'sample')} an epoch",
        "Validation": validation,
        "Iterations": f"{position.iteration + 1:,} to {total:,} of {samples}, {counted(epochs, 'epoch')}"
        if position.iteration < total
        else f"none: the checkpoint has reached train.total_iter, {total:,}; a larger one trains on",
        "Hardware": ranks + hardware(options["num_gpu"]) + idle,
        "Precision": ", ".join([train["precision"], *(k for k in SWITCHES if train[k] not in (False, "auto"))]),
        "Weights": _weights(options, position),
    }
    for what, text in lines.items():
        logger.info("%-11s%s", what, text)
    if own := ", ".join(f"train.{name}" for name in train if name not in {option.name for option in TRAIN.options}):
        logger.info("%-11s%s: of %s", "Options", own, options["model_type"])
    workers, cores = options["datasets"]["train"]["num_worker_per_gpu"], usable_cores()
    if workers > cores:
        what = f"{workers} processes load data on {counted(cores, 'core')}"
        logger.warning("%-11s%s: fewer may be faster (datasets.train.num_worker_per_gpu)", "Workers", what)
    if late := [m for m in train["scheduler"].get("milestones", []) if m >= total]:
        logger.warning("%-11strain.scheduler.milestones %s: the run ends at %s", "Unused", late, f"{total:,}")
    if train["warmup_iter"] > total:
        logger.warning(
            "%-11send of train.warmup_iter %s: the run ends at %s", "Unused", train["warmup_iter"], f"{total:,}"
        )
    _introduce_resume(options, position, before, now)


def hardware(num_gpu: int) -> str:
    """What this process computes on."""
    if num_gpu:
        return torch.cuda.get_device_name()
    return f"CPU, {threads()} of {counted(os.cpu_count() or 1, 'core')}"


def _weights(options: dict[str, Any], position: Position) -> str:
    if position.iteration:
        return f"of the checkpoint of iteration {position.iteration:,}"
    given = {key: path for key, path in options["path"].items() if key.startswith("pretrain_network") and path}
    computed = {"linear": "a linear filter of the training set", "last": "the last convolution computed"}
    how = options["train"]["network_init"]
    sources = [f"{path} (path.{key})" for key, path in given.items()]
    sources += [f"{computed[how]} (train.network_init)"] if how in computed else []
    return ", ".join(sources) or "random"


def _introduce_resume(options: dict[str, Any], position: Position, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed, kept = differences(before, now) if before else ([], [])
    start = f"from iteration {position.iteration:,}, " if position.iteration else ""
    if position.by_epoch:
        how = "which BasicSR saved: by epoch, from the beginning of the one it was in"
    elif options["model_type"] not in ("DLGSANetModel", "SRModel"):
        how = f"weights, optimizers and schedules; what else {options['model_type']} keeps is not saved"
    elif changed:
        how = f"not exact: {'; '.join(changed)}"
    elif position.iteration and not before:
        how = "exact if seed, data, batch and options are unchanged: this checkpoint does not record them"
    else:
        how = "exact, inside an epoch too"
    logger.log(logging.WARNING if changed else logging.INFO, "%-11s%s%s", "Resume", start, how)
    if kept:
        logger.warning("%-11s%s: optimizers and schedules keep what the checkpoint has", "Unused", "; ".join(kept))
