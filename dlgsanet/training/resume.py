"""Resuming a run: which checkpoint it continues from, and how its state is taken from a model and restored.

Works with any BasicSR model: its networks are the attributes `net_*` (`net_g_ema` holds the averages of `net_g`).
"""

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.models.base_model import BaseModel
from torch import nn

from dlgsanet.distributed import gather
from dlgsanet.errors import UserError, brief
from dlgsanet.models.optimization import end_of
from dlgsanet.models.weights import misfits
from dlgsanet.training.checkpoints import Checkpoint, Checkpoints, iteration_of

AVERAGES = "_ema"
BAD_STEPS = ("bad_steps", "bad_steps_in_row")


@dataclass
class Position:
    """How far a run has come."""

    iteration: int = 0
    samples: int = 0  # consumed by all ranks together
    validated: int = 0  # the last iteration with a completed validation
    best: dict[str, Any] = field(default_factory=dict)  # value and iteration of the best validation, by which metric
    seconds: float = 0.0  # spent so far, over all starts
    by_epoch: bool = False  # BasicSR saved it: this start began at the start of the epoch


def checkpoint_to_resume(options: dict[str, Any], checkpoints: Checkpoints) -> Checkpoint | None:
    """The checkpoint from which a run continues: its newest with `--auto-resume`, else that of `path.resume_state`.

    Raises:
        UserError: the file of `path.resume_state` is not a training state, or no checkpoint is whole.
    """
    if options["auto_resume"] and (newest := checkpoints.newest()):
        return newest
    if path := options["path"].get("resume_state"):
        state = Path(path)
        iteration = iteration_of(state)
        if iteration is None:
            raise UserError(f"path.resume_state: {path} is not named ITERATION.state")
        return Checkpoints(state.parent.parent).read(iteration)
    return None


def weights_of(model: BaseModel) -> dict[str, dict[str, Any]]:
    """The content of each weights file: by label (`net_g`), `{"params": ..., "params_ema": ...}`."""
    files: dict[str, dict[str, Any]] = {}
    for label, network in vars(model).items():
        if label.startswith("net_") and isinstance(network, nn.Module):
            key = "params_ema" if label.endswith(AVERAGES) else "params"
            weights = {name: tensor.cpu() for name, tensor in model.get_bare_model(network).state_dict().items()}
            files.setdefault(label.removesuffix(AVERAGES), {})[key] = weights
    return files


def state_of(model: BaseModel, position: Position, epoch: int, conditions: dict[str, Any]) -> dict[str, Any]:
    """The content of the training state file. All ranks call this; each one's random state is in it."""
    return {
        "epoch": epoch,
        "iter": position.iteration,
        "optimizers": [optimizer.state_dict() for optimizer in model.optimizers],
        # Counters (milestones) come from the options, and older PyTorch does not read them with weights_only.
        "schedulers": [
            {name: value for name, value in scheduler.state_dict().items() if not isinstance(value, Counter)}
            for scheduler in model.schedulers
        ],
        "classes": _classes(model),
        "scaler": model.scaler.state_dict() if hasattr(model, "scaler") else {},
        "bad_steps": [getattr(model, name, 0) for name in BAD_STEPS],
        "position": asdict(position) | {"by_epoch": False},
        "random": gather(_random_state()),
        "conditions": conditions,
    }


def restore(model: BaseModel, checkpoint: Checkpoint, rank: int, epoch_length: int) -> Position:
    """Restore what `weights_of` and `state_of` took, in a model and in the random generators of this rank.

    Returns:
        Where to continue. A checkpoint that BasicSR wrote does not record where within an epoch it was taken: its epoch
        of `epoch_length` samples starts again.

    Raises:
        UserError: the options name another network, optimizer or schedule than the checkpoint has.
    """
    unfit = f"the checkpoint of iteration {checkpoint.iteration} does not fit the options"
    start_over = "to start over from its weights, set another name, and path.pretrain_network_g to them"
    state = checkpoint.state
    before, now = state.get("classes", _classes(model)), _classes(model)
    if before != now and now == [*before[:-1], "WSD"]:  # the one schedule that can follow any other
        state, before = with_constant_rate(state), now
    if before != now:
        raise UserError(f"{unfit}: it has {', '.join(before)}, they name {', '.join(now)}; {start_over}")
    try:
        _load_networks(model, checkpoint.weights)
        model.resume_training(state)
    except UserError as error:
        raise UserError(f"{unfit}: {error}; restore network_g, or set another name for a new run") from error
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(f"{unfit}: {brief(error, 200)}; {start_over}") from error
    end, total = min(map(end_of, model.schedulers), default=math.inf), model.opt["train"]["total_iter"]
    if end < total:
        kept = f"its {now[-1]}, which continues as it was saved, ends at iteration {end}"
        raise UserError(f"{unfit}: {kept}, before train.total_iter, {total}; {start_over}")
    if checkpoint.state.get("scaler") and hasattr(model, "scaler"):
        model.scaler.load_state_dict(checkpoint.state["scaler"])
    for name, count in zip(BAD_STEPS, checkpoint.state.get("bad_steps", []), strict=False):
        setattr(model, name, count)
    states = checkpoint.state.get("random", [])
    if rank < len(states):  # with more ranks than before, the new ones keep their fresh state
        _set_random_state(states[rank])
    if "position" in checkpoint.state:
        try:
            return Position(**checkpoint.state["position"])
        except TypeError as error:
            other = f"is from another version of dlgsanet; continue the run with that one, or {start_over}"
            raise UserError(f"the checkpoint of iteration {checkpoint.iteration} {other}") from error
    samples = checkpoint.state["epoch"] * epoch_length
    return Position(checkpoint.iteration, samples, validated=checkpoint.iteration, by_epoch=True)


def with_constant_rate(state: dict[str, Any]) -> dict[str, Any]:
    """A training state with `WSD` as its schedule, at the rates that the run has reached; for one optimizer."""
    rates = [group.get("scheduled_lr", group["lr"]) for group in state["optimizers"][0]["param_groups"]]
    schedule = {"base_lrs": rates, "_last_lr": rates, "last_epoch": state["iter"] - 1, "_step_count": state["iter"]}
    return state | {"schedulers": [schedule], "classes": [*state["classes"][:-1], "WSD"]}


def _load_networks(model: BaseModel, files: dict[str, dict[str, Any]]) -> None:
    for label, network in vars(model).items():
        if label.startswith("net_") and isinstance(network, nn.Module):
            if not (content := files.get(label.removesuffix(AVERAGES))):
                raise ValueError(f"it has no weights of {label}")
            # Averages that the run did not keep so far begin as the weights.
            key = "params_ema" if label.endswith(AVERAGES) and "params_ema" in content else "params"
            bare = model.get_bare_model(network)
            try:
                bare.load_state_dict(content[key])
            except RuntimeError as error:
                faults = misfits(content[key], bare.state_dict()) or brief(error, 200)
                raise UserError(f"its {label} is another one: {faults}") from error


def _classes(model: BaseModel) -> list[str]:
    return [type(part).__name__ for part in (*model.optimizers, *model.schedulers)]


@contextmanager
def keeps_random_state() -> Iterator[None]:
    """What is drawn within the block is drawn again after it."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _random_state() -> dict[str, Any]:
    _, words, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [np.asarray(words).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
