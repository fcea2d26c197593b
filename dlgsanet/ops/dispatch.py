"""Which backend computes an operation here, and why.

A backend is a module with

- functions of the names and signatures of `dlgsanet.ops.backends.reference`, as many as it has (autograd follows those
  named ``differentiable_...``), and
- ``why_not(operation, *args) -> str | None``: why it cannot take this call, in a few plain words, or None.

The environment variable ``DLGSANET_BACKEND`` names the one to use instead of the fastest; what that one cannot take
goes to those after it.
"""

import functools
import importlib
import logging
import os
from collections.abc import Iterable
from types import ModuleType

from dlgsanet.errors import UserError

# Fastest first.
BACKENDS = {
    "cuda": "dlgsanet.ops.backends.cuda",
    "native": "dlgsanet.ops.backends.native",
    "torch": "dlgsanet.ops.backends.torch",
    "reference": "dlgsanet.ops.backends.reference",
}

NO_LAYER = "it has no such layer"

logger = logging.getLogger("dlgsanet")


def candidates() -> list[str]:
    """Names of the backends that may be asked, in order.

    Raises:
        UserError: ``DLGSANET_BACKEND`` names none of them.
    """
    names = list(BACKENDS)
    forced = os.environ.get("DLGSANET_BACKEND")
    if not forced:
        return names
    if forced not in names:
        raise UserError(f"DLGSANET_BACKEND is {forced!r}; it must be one of {', '.join(names)}")
    return names[names.index(forced) :]


def explain(operation: str, *args) -> list[tuple[str, str | None]]:
    """Why each candidate cannot take a call (None where it can): what `select` decides by."""
    return [(name, _why_not(name, operation, *args)) for name in candidates()]


def select(operation: str, *args) -> ModuleType:
    """The first candidate that can take ``operation(*args)``; args as the operation takes them, x first.

    Says once which one it is and why: in the log, or as a warning where a GPU's own kernels do not serve.
    """
    refused: list[tuple[str, str]] = []
    for name in candidates():
        reason = _why_not(name, operation, *args)
        if reason is None:
            _say_once(operation, args[0].device.type, name, tuple(refused))
            return _load(name)
        refused.append((name, reason))
    raise RuntimeError(f"no backend takes {operation}{because(refused)}")


def because(refused: Iterable[tuple[str, str | None]]) -> str:
    """Backends and why they refused a call, in brackets, or nothing where there are none."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    return f" ({reasons})" if reasons else ""


def _why_not(name: str, operation: str, *args) -> str | None:
    if name == "reference":
        return None
    backend = _load(name)
    if not hasattr(backend, operation):
        return NO_LAYER
    return backend.why_not(operation, *args)


@functools.cache
def _load(name: str) -> ModuleType:
    return importlib.import_module(BACKENDS[name])


@functools.cache
def _say_once(operation: str, device: str, name: str, refused: tuple[tuple[str, str], ...]) -> None:
    slow = device == "cuda" and dict(refused).get("cuda", NO_LAYER) != NO_LAYER
    level = logging.WARNING if slow else logging.INFO
    logger.log(level, "%s on %s: %s backend%s", operation, device, name, because(refused))
