"""Optimisers and learning-rate schedules by name: PyTorch's, and BasicSR's where it has its own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from basicsr.models import lr_scheduler as basicsr_schedulers
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Those that a training step cannot drive: they call the loss again, want sparse gradients, or a measured value.
_OPTIMIZERS_LEFT_OUT = {"Optimizer", "LBFGS", "SparseAdam"}
_SCHEDULERS_LEFT_OUT = {"LRScheduler", "ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"}
_SCHEDULERS_LEFT_OUT |= {"LambdaLR", "MultiplicativeLR"}  # a function cannot stand in an option file


def _subclasses(module: Any, base: type, left_out: set[str]) -> dict[str, Callable]:
    classes = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)}
    return {k: v for k, v in classes.items() if not k.startswith("_") and k not in left_out}


def optimizers() -> Mapping[str, Callable[..., Optimizer]]:
    """The optimisers that `train.optim_g.type` may name."""
    return _subclasses(torch.optim, Optimizer, _OPTIMIZERS_LEFT_OUT)


def schedulers() -> Mapping[str, Callable[..., LRScheduler]]:
    """The schedules that `train.scheduler.type` may name. `MultiStepLR` is BasicSR's, as published files mean it."""
    return _subclasses(torch.optim.lr_scheduler, LRScheduler, _SCHEDULERS_LEFT_OUT) | {
        "MultiStepLR": basicsr_schedulers.MultiStepRestartLR,
        "MultiStepRestartLR": basicsr_schedulers.MultiStepRestartLR,
        "CosineAnnealingRestartLR": basicsr_schedulers.CosineAnnealingRestartLR,
    }


def build_optimizer(options: Mapping[str, Any], parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The optimiser of a `train.optim_g` section."""
    arguments = {key: value for key, value in options.items() if key != "type"}
    return optimizers()[options["type"]](parameters, **arguments)


def build_scheduler(options: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    """The learning-rate schedule of a `train.scheduler` section; its unit is the iteration."""
    arguments = {key: value for key, value in options.items() if key != "type"}
    return schedulers()[options["type"]](optimizer, **arguments)


class WarmUp:
    """Scales the learning rates of a schedule linearly up over the first iterations, and leaves it as it is after.

    The schedule goes on from the unscaled rates, which are kept in the optimiser's groups (and so in its state):
    BasicSR's own warm-up lets schedules that multiply the current rate go on from a scaled one.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler, iterations: int):
        self.optimizer, self.scheduler, self.iterations = optimizer, scheduler, iterations

    def set_rates(self, iteration: int) -> None:
        """Set the learning rates of an iteration, counted from 1; to be called for each, in their order."""
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = group.get("scheduled_lr", group["lr"])
        if iteration > 1:
            self.scheduler.step()
        for group in groups:
            group["scheduled_lr"] = group["lr"]
            group["lr"] *= min(1.0, iteration / max(1, self.iterations))
