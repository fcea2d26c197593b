"""Checkpoint files: .pth as the published code writes and reads them, and .safetensors with the options inside.

What this promises to all that load or save weights:

- Nothing in a file is executed. A .pth is read with ``weights_only=True``; one that would run code is refused.
- `read_checkpoint` takes what BasicSR writes (``params_ema``, ``params``), a bare state dict, and .safetensors,
  whatever the file is called; names are the published ones, without the ``module.`` of data parallelism.
- `build_network` needs nothing but the file: the options come from the metadata, those that it lacks from the shapes
  of the weights (`dlgsanet.archs.detect`), and where the two disagree the file is refused.
- `write_checkpoint` writes aside and renames; `read_checkpoint` gives back every bit of it, metadata too.
- Every fault is a `UserError` of one line that names the file.

Metadata are strings. Key ``network_g`` holds the network's options as JSON; others (``scale``, ``training_data``,
``date``...) are free, told by `dlgsanet convert` and kept by all that copies weights.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.archs.detect import contradictions, published_options
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole, written_aside

FORMATS = (".pth", ".safetensors")
_ZIP, _PICKLE = b"PK", b"\x80"  # how a .pth begins, now and before PyTorch 1.6


@dataclass(frozen=True)
class Checkpoint:
    """Weights under their published names, on the CPU, and what the file tells about them."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path | str, key: str | None = None) -> Checkpoint:
    """Read a .pth or .safetensors file.

    Args:
        path: the file.
        key: for a .pth, which of its state dicts: ``params`` or ``params_ema``. None takes the averaged weights
            (``params_ema``) where there are any.

    Raises:
        UserError: no such file, damaged, would run code, no state dict in it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        if start == _ZIP or start[:1] == _PICKLE:
            return _read_pth(path, key)
        return _read_safetensors(path)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused, it is damaged or would run code when unpickled") from None
    # The readers raise whatever a damaged file makes them stumble over.
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read_pth(path: Path, key: str | None) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, which say nothing to whoever has the file
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    if "optimizers" in content:
        raise UserError(f"{path}: a training state; the weights are beside it, in models/net_g_*.pth")
    keys = [k for k in ("params_ema", "params") if isinstance(content.get(k), dict)]
    if key is not None and key not in keys:
        raise UserError(f"{path}: has no {key!r}; it has {', '.join(keys) or 'a bare state dict'}")
    state = content[key or keys[0]] if keys else content
    metadata = content.get("metadata") if keys else None
    metadata = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    return _checked(path, state, metadata)


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = file.keys()  # not a dict: it cannot be iterated over
        return _checked(path, {name: file.get_tensor(name) for name in names}, file.metadata() or {})


def _checked(path: Path, state: Mapping[Any, Any], metadata: dict[str, str]) -> Checkpoint:
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_sparse:
            raise UserError(f"{path}: not a state dict of weights: {name} is not a tensor of real numbers")
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite; the training diverged or the file is bad")
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return Checkpoint(path, tensors, metadata)


def network_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every `network_g` option of the network that the weights belong to (no ``type``).

    Raises:
        UserError: not weights of a DLGSANet, or metadata that do not fit them.
    """
    path, state = checkpoint.path, checkpoint.state
    try:
        told = json.loads(checkpoint.metadata.get("network_g", "{}"))
        if not isinstance(told, dict):
            raise ValueError("metadata network_g is not a table of options")
        told.pop("type", None)
        if faults := contradictions(told, state):
            raise ValueError("; ".join(faults))
        return published_options(state) | told
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None


def build_network(checkpoint: Checkpoint) -> DLGSANet:
    """The network of a checkpoint in evaluation mode, float32, on the CPU, without gradients.

    Raises:
        UserError: the file's options cannot be, or its weights do not fit them.
    """
    path, options = checkpoint.path, network_options(checkpoint)
    try:
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            network = DLGSANet(**options)
        network.load_state_dict({k: v.float() for k, v in checkpoint.state.items()}, assign=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    except RuntimeError as error:  # of load_state_dict: a headline, then one line for each fault
        faults = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{path}: does not fit the network: {' '.join(faults[:1])[:300]}{more}") from None
    return network.eval().requires_grad_(False)


def write_checkpoint(
    path: Path | str,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights; the extension says the format.

    A .pth is ``{"params": state, "metadata": metadata}``: the published code reads it.

    Args:
        path: ends in .pth or .safetensors.
        state: the weights under their published names, as `DLGSANet.state_dict` gives them.
        options: the network's `network_g` options, kept as JSON under metadata key ``network_g``.
        metadata: what else to tell: key ``scale``, ``training_data``, ``date``...

    Raises:
        UserError: another extension, or the file cannot be written; nothing is left half-written.
    """
    path = Path(path)
    told = dict(metadata or {})
    if options is not None:
        told["network_g"] = json.dumps({k: v for k, v in options.items() if k != "type"})
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_whole(path, save(state, told or None))
    elif path.suffix == ".pth":
        with written_aside(path) as file:
            torch.save({"params": state, "metadata": told}, file)
    else:
        raise UserError(f"{path}: a checkpoint's name must end in {' or '.join(FORMATS)}")
