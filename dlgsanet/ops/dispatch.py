"""The choice of the backend that computes a call.

By default it is the fastest backend that supports the call. The environment variable ``DLGSANET_BACKEND`` skips all
backends before the one it names, or, with a minus before the name, only this one. The argument ``backend=`` of a
public function allows only the named backend. Tests and measurements put other backends in their places (`using`).
"""

import functools
import importlib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.device import GPUS
from dlgsanet.errors import UserError, unknown
from dlgsanet.ops.backends import NO_LAYER, Backend, choice, composed, gradients
from dlgsanet.ops.records import OPERATIONS, Conv3x3, Convolution, Layer, Record, map_tensors, tensors_of
from dlgsanet.packages import code_in

# Modules with an object `BACKEND`, fastest first. The last one supports every call.
BACKENDS = {
    "cuda": "dlgsanet.ops.backends.cuda",
    "triton": "dlgsanet.ops.backends.triton",
    "native": "dlgsanet.ops.backends.native",
    "torch": "dlgsanet.ops.backends.torch",
    "composed": "dlgsanet.ops.backends.composed",
    "reference": "dlgsanet.ops.backends.reference",
}

FOR_GPUS = ("cuda", "triton")

logger = logging.getLogger("dlgsanet")

_used: dict[str, Backend] | None = None  # of all threads: autograd has threads of its own


@contextmanager
def using(*backends: str | Backend) -> Iterator[None]:
    """Within the block these backends are the candidates, in this order, whatever ``DLGSANET_BACKEND`` says.

    It applies to all threads. Of nested blocks the inner one applies. Graphs are traced with the layers of composed if
    it is among the backends, otherwise with those of the last one.

    Args:
        backends: names, or objects with different names. A copy of a backend (`dataclasses.replace`) may record its
            calls or compute otherwise, and takes the place of the backend of its name.
    """
    global _used
    before, _used = _used, {b.name: b for b in (load(b) if isinstance(b, str) else b for b in backends)}
    try:
        yield
    finally:
        _used = before


def candidates() -> list[str]:
    """Names of the backends to try, in order.

    Raises:
        UserError: ``DLGSANET_BACKEND`` is neither the name of a backend nor ``-NAME``.
    """
    if _used is not None:
        return list(_used)
    names = list(BACKENDS)
    wanted = os.environ.get("DLGSANET_BACKEND")
    if not wanted:
        return names
    without = [f"-{name}" for name in names[:-1]]
    if wanted not in (*names, *without):
        raise UserError(f"DLGSANET_BACKEND: {unknown('backend', wanted, (*names, *without))}")
    if wanted in without:
        return [name for name in names if name != wanted[1:]]
    return names[names.index(wanted) :]


def explain(
    record: Record, x: Tensor, training: bool = False, after: str | None = None
) -> list[tuple[str, str | None]]:
    """The candidates up to the one that supports a call, each with its reason for refusing (None for the last).

    after: begin with the candidate after this one.
    """
    answers: list[tuple[str, str | None]] = []
    names = candidates()
    for name in names[names.index(after) + 1 if after else 0 :]:
        answers.append((name, load(name).refuses(record, x, training)))
        if answers[-1][1] is None:
            return answers
    raise RuntimeError(f"no backend supports {OPERATIONS[type(record)]}{because(answers)}")


def select(record: Record, x: Tensor, training: bool = False, backend: str | None = None) -> Backend:
    """The backend that computes a call: the first candidate that supports it, or `backend`.

    Logs once per device which backend it is and why others refused. If kernels for GPUs are not used on a GPU of
    any make, the entry is a warning.

    Raises:
        ValueError: `backend` is unknown, or does not support the call.
    """
    if backend is not None:
        return _named(backend, record, x, training)
    *refused, (name, _) = explain(record, x, training)
    device = x.device.type
    gpu = device in GPUS
    reported = [(other, reason) for other, reason in refused if reason != NO_LAYER and (other in FOR_GPUS) == gpu]
    slow = gpu and bool(reported)
    _report_once(f"{OPERATIONS[type(record)]} on {device}" if slow else device, name, tuple(reported), slow)
    return load(name)


def faster(backend: Backend, layer: Layer | Conv3x3, x: Tensor, training: bool = False) -> Backend:
    """The backend for a layer: `backend`, or the next one that supports the call if it is faster.

    They are compared and timed once on a card for each class of sizes (`dlgsanet.ops.backends.choice`), in training
    with the backward pass.
    """
    key = None if backend.timed is None else backend.timed(layer, x)
    if key is None:
        return backend
    *_, (name, _) = explain(layer, x, training, after=backend.name)
    usual = load(name)
    operation = OPERATIONS[type(layer)] + " in training" * training
    which = _choice(operation, x.device, backend.name, name, *key)
    pixels = len(x) * x.shape[2:].numel()
    run = _gradient if training else Backend.infer
    slower = choice.is_faster(which, pixels, partial(run, usual, layer, x), partial(run, backend, layer, x))
    return usual if slower else backend


def _gradient(backend: Backend, layer: Layer | Conv3x3, x: Tensor) -> Tensor:
    """The gradient of x, for the layer's result as the gradient of itself. Those of its tensors are computed too."""
    x, *tensors = (t.detach().requires_grad_() for t in (x, *tensors_of(layer)))
    remaining = iter(tensors)
    out = backend.train(map_tensors(layer, lambda t: next(remaining)), x)
    return torch.autograd.grad(out, (x, *tensors), out.detach())[0]


@functools.cache
def _choice(operation: str, device: torch.device, first: str, second: str, *key: object) -> choice.Choice:
    folders = {Path(str(importlib.import_module(BACKENDS[name]).__file__)).parent for name in (first, second)}
    sources = tuple(file for folder in sorted(folders) for file in code_in(folder))
    return choice.Choice(f"{operation} of {first}", device, sources, (operation, first, second, *key))


def because(refused: Iterable[tuple[str, str | None]]) -> str:
    """Backends and their reasons for refusing a call, in brackets. Empty if there are none."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    return f" ({reasons})" if reasons else ""


def load(name: str) -> Backend:
    """The backend with this name, in `BACKENDS` or put in its place (`using`)."""
    return _used[name] if _used and name in _used else _imported(name)


@functools.cache
def _imported(name: str) -> Backend:
    return importlib.import_module(BACKENDS[name]).BACKEND


def traced() -> Backend:
    """The backend whose layers are in graphs that are traced."""
    if _used is None:
        return composed.BACKEND
    return _used["composed"] if "composed" in _used else list(_used.values())[-1]


def _fastest(convolution: Convolution, x: Tensor, training: bool) -> Any:
    return select(convolution, x, training).functions(type(convolution))


gradients.choose_by(_fastest)


def _named(name: str, record: Record, x: Tensor, training: bool) -> Backend:
    if name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    if reason := load(name).refuses(record, x, training):
        raise ValueError(f"the {name} backend does not support this call of {OPERATIONS[type(record)]}: {reason}")
    return load(name)


@functools.cache
def _report_once(what: str, name: str, refused: tuple[tuple[str, str | None], ...], slow: bool) -> None:
    logger.log(logging.WARNING if slow else logging.INFO, "%s: %s backend%s", what, name, because(refused))
