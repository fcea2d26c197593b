"""The first lines of a run: what it is about to do, and with what."""

import logging
import math
import os
from typing import Any

import torch

from dlgsanet.training.state import Position
from dlgsanet.training.validation import ValidationSet

SWITCHES = ("compile", "channels_last", "deterministic")

logger = logging.getLogger("dlgsanet")


def introduce(
    options: dict[str, Any],
    train_set: Any,
    validation_sets: list[ValidationSet],
    batch_size: int,
    epoch_length: int,
    position: Position,
) -> None:
    """Log a few lines. The backend of the dynamic convolution and the time that the run will take are known, and
    told, after its first iterations.

    Args:
        options: of the run.
        train_set, validation_sets: as built, so found and checked.
        batch_size: samples of an iteration, of all ranks.
        epoch_length: samples of an epoch.
        position: where the run starts.
    """
    train = options["train"]
    name = options["datasets"]["train"]["name"]
    validation = ", ".join(f"{data.name} ({len(data)})" for data in validation_sets) or "none"
    total = int(train["total_iter"])
    epochs = math.ceil(total * batch_size / epoch_length)
    ranks = f"{options['world_size']} ranks, " if options["dist"] else ""
    idle = " (one of several GPUs: torchrun uses all)" if options["num_gpu"] > 1 and not options["dist"] else ""
    lines = {
        "Run": f"{options['name']}, {options['model_type']}, seed {options['manual_seed']}",
        "Folder": os.path.relpath(options["path"]["experiments_root"]),
        "Training": f"{name}: {epoch_length:,} samples an epoch; all pairs found and checked",
        "Validation": f"{validation}, every {options['val']['val_freq']:,} iterations" if validation_sets else "none",
        "Iterations": f"{position.iteration + 1:,} to {total:,} of {batch_size} samples, {epochs} epochs",
        "Hardware": ranks + hardware(options["num_gpu"]) + idle,
        "Precision": ", ".join([train["precision"], *(k for k in SWITCHES if train[k])]),
        "Resume": _resume(options, position),
    }
    for what, text in lines.items():
        logger.info("%-11s%s", what, text)


def hardware(num_gpu: int) -> str:
    """What this process computes on."""
    if num_gpu:
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def _resume(options: dict[str, Any], position: Position) -> str:
    start = f"from iteration {position.iteration:,}, " if position.iteration else ""
    if position.by_epoch:
        return f"{start}which BasicSR saved: by epoch, from the beginning of the one it was in"
    if options["model_type"] in ("DLGSANetModel", "SRModel"):
        return f"{start}exact, inside an epoch too"
    return f"{start}weights, optimisers and schedules; what else {options['model_type']} keeps is not saved"
