"""Optimizers and learning-rate schedules by name: PyTorch's, those of BasicSR that differ, and ours."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.models import lr_scheduler as basicsr_schedulers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dlgsanet.errors import UserError, faults_of, reason_of
from dlgsanet.models.muon import Muon, split_parameters

# A training step cannot drive these: they evaluate the loss again, or need sparse gradients or a measured value.
_OPTIMIZERS_LEFT_OUT = {"Optimizer", "LBFGS", "SparseAdam"}
_SCHEDULERS_LEFT_OUT = {"LRScheduler", "ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"}
_SCHEDULERS_LEFT_OUT |= {"LambdaLR", "MultiplicativeLR"}  # an option file cannot hold a function


class WSD(LRScheduler):
    """Warm-up, stable, decay: a constant rate, then a decay to 0 over the last iterations of the run.

    In the decay the rate is ``1 - sqrt(p)`` of the constant one, p being the share of the decay that is over
    (Hägele et al., NeurIPS 2024, arXiv 2405.18392). The warm-up is `train.warmup_iter`.

    The state of the schedule holds the constant rate and the iteration, not the length: a resumed run ends when its
    option file says.

    Args:
        optimizer: its rates are scheduled.
        total_iter: iterations of the run.
        decay_iter: iterations of the decay, the last of the run. 0: no decay.

    Raises:
        ValueError: the decay is longer than the run.
    """

    def __init__(self, optimizer: Optimizer, total_iter: int, decay_iter: int = 0):
        if not 0 <= decay_iter <= total_iter:
            raise ValueError(f"decay_iter is {decay_iter}; it must be 0 to total_iter, which is {total_iter}")
        self.total_iter, self.decay_iter = int(total_iter), int(decay_iter)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of every parameter group in iteration ``last_epoch + 1``."""
        decayed = self.last_epoch - (self.total_iter - self.decay_iter)
        factor = 1 - min(1.0, decayed / self.decay_iter) ** 0.5 if self.decay_iter and decayed > 0 else 1.0
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key not in ("total_iter", "decay_iter")}


def _subclasses(module: Any, base: type, left_out: set[str]) -> dict[str, Callable[..., Any]]:
    classes = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)}
    return {k: v for k, v in classes.items() if not k.startswith("_") and k not in left_out}


def optimizers() -> Mapping[str, Callable[..., Optimizer]]:
    """The optimizers that `train.optim_g.type` may name. `Muon` is ours: PyTorch's takes 2-D parameters only."""
    return _subclasses(torch.optim, Optimizer, _OPTIMIZERS_LEFT_OUT) | {"Muon": Muon}


def schedulers() -> Mapping[str, Callable[..., LRScheduler]]:
    """The schedules that `train.scheduler.type` may name. `MultiStepLR` is BasicSR's, as in published files."""
    return _subclasses(torch.optim.lr_scheduler, LRScheduler, _SCHEDULERS_LEFT_OUT) | {
        "MultiStepLR": basicsr_schedulers.MultiStepRestartLR,
        "MultiStepRestartLR": basicsr_schedulers.MultiStepRestartLR,
        "CosineAnnealingRestartLR": basicsr_schedulers.CosineAnnealingRestartLR,
        "WSD": WSD,
    }


def build_optimizer(options: Mapping[str, Any], network: nn.Module) -> Optimizer:
    """The optimizer of a `train.optim_g` section for the trainable parameters of a network."""
    arguments = {key: value for key, value in options.items() if key != "type"}
    if options["type"] == "Muon":
        return Muon(*split_parameters(network), **arguments)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if options["type"] in ("Adam", "AdamW") and all(p.is_cpu for p in parameters):
        chosen = {"foreach", "fused", "differentiable"} & arguments.keys()
        arguments |= {} if chosen else {"fused": True}  # PyTorch's default updates one small parameter after another
    return optimizers()[options["type"]](parameters, **arguments)


def build_scheduler(options: Mapping[str, Any], optimizer: Optimizer, total_iter: int) -> LRScheduler:
    """The schedule of a `train.scheduler` section; its unit is the iteration, and the run has `total_iter`."""
    arguments = {key: value for key, value in options.items() if key != "type"}
    if options["type"] == "WSD":
        return WSD(optimizer, total_iter, **arguments)
    return schedulers()[options["type"]](optimizer, **arguments)


def end_of(scheduler: LRScheduler) -> float:
    """The iteration after which a schedule has no rates, and fails: of OneCycleLR and CosineAnnealingRestartLR."""
    ends = getattr(scheduler, "cumulative_period", None) or [math.inf]
    return getattr(scheduler, "total_steps", ends[-1])


def optimization_faults(train: Mapping[str, Any]) -> list[str]:
    """What the optimizer and the schedule of a `train` section refuse: both are tried on a network of three layers.

    Some classes check their arguments when they are built, others in their first step, and a run would get there only
    after its images were read. `capturable` is left out: it needs a GPU, and this runs on the CPU.
    """
    where = "train.optim_g"
    options = {key: value for key, value in train["optim_g"].items() if key != "capturable"}
    try:
        with torch.random.fork_rng(devices=[]):
            network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        with faults_of(where):
            optimizer = build_optimizer(options, network)
        where = "train.scheduler"
        with faults_of(where):
            scheduler = build_scheduler(train["scheduler"], optimizer, train["total_iter"])
        if (end := end_of(scheduler)) < train["total_iter"]:
            return [f"train.scheduler: ends at iteration {end}, before train.total_iter, {train['total_iter']}"]
        warm_up = WarmUp(optimizer, scheduler, 0)
        for iteration in (1, 2):
            before = _other_than_rates(optimizer)
            warm_up.set_rates(iteration)
            if train.get("cuda_graph") is True and _other_than_rates(optimizer) != before:
                return [
                    "train.cuda_graph: this schedule changes more than rates; set train.scheduler.cycle_momentum: false"
                ]
            for p in network.parameters():
                p.grad = torch.ones_like(p)
            where = "train.optim_g"
            optimizer.step()
            where = "train.scheduler"
    except UserError as error:
        return [str(error)]
    except Exception as error:  # PyTorch's classes do not check all arguments
        return [f"{where}: {reason_of(error)}"]
    return []


def _other_than_rates(optimizer: Optimizer) -> list[dict[str, Any]]:
    rates = ("params", "lr", "scheduled_lr")
    return [{key: value for key, value in group.items() if key not in rates} for group in optimizer.param_groups]


class WarmUp:
    """Scales up the learning rates of a schedule linearly over the first iterations; later ones stay unchanged.

    The schedule continues from the unscaled rates, which are kept in the optimizer's groups and so in its state.
    BasicSR's own warm-up lets schedules that multiply the current rate continue from a scaled one.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler, iterations: int):
        self.optimizer, self.scheduler, self.iterations = optimizer, scheduler, iterations
        # PyTorch warns where the first step was skipped, or made before a resume: no rate is missed.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")

    def set_rates(self, iteration: int) -> None:
        """Set the learning rates of an iteration, counted from 1. Call this for every iteration in order."""
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = group.get("scheduled_lr", group["lr"])
        if iteration > 1:
            self.scheduler.step()
        for group in groups:
            group["scheduled_lr"] = group["lr"]
            group["lr"] *= min(1.0, iteration / max(1, self.iterations))
