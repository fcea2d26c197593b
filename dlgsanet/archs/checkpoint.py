"""Checkpoint files: .pth as the published code writes and reads them, and .safetensors with the options inside.

All code that loads or saves weights can rely on this:

- Nothing in a file is executed. A .pth is read with ``weights_only=True``; one that would run code is refused.
- `read_checkpoint` takes what BasicSR writes (``params_ema``, ``params``), a bare state dict, the files of Lightning
  and OpenMMLab, and .safetensors, whatever the file is called. Names are the published ones, without the prefixes
  of wrappers (``module.``, ``_orig_mod.``, ``net_g.``, ``generator.``, ...).
- `build_network` needs nothing but the file: the options come from the metadata, missing ones from the shapes of the
  weights (`dlgsanet.archs.detect`). Where the two disagree, the file is refused.
- `write_checkpoint` writes a whole file or none; `read_checkpoint` gives back every bit of it, and the metadata.
- Every fault is a `UserError` of one line that names the file.

Metadata are strings. Key ``network_g`` holds the network's options as JSON; others (``scale``, ``training_data``,
``date``...) are free, are shown by `dlgsanet convert` and kept by everything that copies weights.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.archs.detect import SHALLOW, contradictions, published_options
from dlgsanet.archs.dlgsanet import DLGSANet, default_options
from dlgsanet.errors import UserError, first_line, missing_package
from dlgsanet.files import printable, write_whole, written_aside

FORMATS = (".pth", ".safetensors")
_ZIP, _PICKLE = b"PK", b"\x80"  # how a .pth begins, now and before PyTorch 1.6
# State dicts inside a .pth. The first one that is there is read: averaged weights, then BasicSR, Lightning and
# OpenMMLab, others.
_KEYS = (
    "params_ema", "model_ema", "g_ema", "ema", "params", "state_dict", "model_state_dict", "model", "net_g",
    "generator", "network", "net", "weights", "checkpoint",
)  # fmt: skip
_OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUM": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff\xe0": "a picture",
    b"<!DO": "a web page: the download failed",
    b"<htm": "a web page: the download failed",
    b"vers": "a Git LFS pointer: run `git lfs pull`",
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights under their published names, on the CPU, and the metadata of the file."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path | str, key: str | None = None) -> Checkpoint:
    """Read a .pth or .safetensors file.

    Args:
        path: the file.
        key: state dict of a .pth to read, ``params`` or ``params_ema``. None: the averaged weights (``params_ema``) if
            there are any.

    Raises:
        UserError: there is no such file, it is damaged or would run code, or it holds no state dict.
    """
    path = Path(path)
    if path.suffix in (".yml", ".yaml"):
        raise UserError(f"{path}: an option file; give weights, {' or '.join(FORMATS)}")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if start[:2] == _ZIP or start[:1] == _PICKLE:
            return _read_pth(path, key)
        if kind := _OTHER_KINDS.get(start):
            raise UserError(f"{path}: damaged or not a checkpoint: {kind}")
        return _read_safetensors(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f": it holds {found[1]}; save the state dict of the network alone" if found else ""
        raise UserError(f"{path}: refused, it is damaged or would run code when unpickled{held}") from None
    except ImportError as error:
        raise missing_package(error) from error
    # A damaged file makes the readers raise exceptions of any kind.
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({first_line(error, 200)})") from None


def _read_pth(path: Path, key: str | None) -> Checkpoint:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, which do not help the owner of the file
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    own = [k for k in ("params_ema", "params") if isinstance(content.get(k), Mapping)]
    if key is not None and own and key not in own:
        raise UserError(f"{path}: has no {key}; set path.param_key_g to {' or '.join(own)}")
    key = key if own else None
    inside = key or next((k for k in _KEYS if isinstance(content.get(k), Mapping)), None)
    if inside is None and "optimizers" in content:
        raise UserError(f"{path}: a training state; the weights are in models/net_g_*.pth of the same run")
    metadata = content.get("metadata") if own else None
    metadata = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    return _checked(path, content[inside] if inside else content, metadata)


def _check_archive(path: Path) -> None:
    """Refuse ZIP files that are not a .pth, and those that unpack to much more: PyTorch does not compress."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if any("/code/" in name or name.startswith("code/") for name in names):
        raise UserError(f"{path}: a TorchScript file; save the state dict of the network")
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(f"{path}: damaged or not a checkpoint: NumPy arrays")
    if sum(member.file_size for member in members) > 2 * path.stat().st_size + (1 << 20):
        raise UserError(f"{path}: refused, it unpacks to much more than its size")


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import safe_open

    with open(path, "rb") as opened:
        name = path if printable(path) == str(path) else f"/dev/fd/{opened.fileno()}"  # it takes UTF-8 alone
        with safe_open(name, framework="pt") as file:
            names = file.keys()  # not a dict: it cannot be iterated over
            # Copies: what it gives is the file's own memory, which changes when the file is overwritten.
            return _checked(path, {name: file.get_tensor(name).clone() for name in names}, file.metadata() or {})


def _checked(path: Path, state: Mapping[Any, Any], metadata: dict[str, str]) -> Checkpoint:
    named = {_without_parallel(str(name)): value for name, value in state.items()}
    tensors = without_wrapper(named, (SHALLOW,))
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized or value.is_meta or value.is_nested:
            raise UserError(f"{path}: not a state dict of weights: {name} is not a tensor of real numbers")
        if value.numel() * value.element_size() > 2 * max(path.stat().st_size, 1 << 20):
            raise UserError(f"{path}: {name} is larger than the file: it repeats its values")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite; the training diverged or the file is bad")
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return Checkpoint(path, tensors, metadata)


def _without_parallel(name: str) -> str:
    """The name without the parts that data parallelism and torch.compile add to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod").removeprefix("module.")


def without_wrapper(state: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The part of a state dict that belongs to the network, without the prefix that a wrapper added to its names.

    Args:
        state: for example of a Lightning module, with ``model.conv.weight`` and weights of a loss.
        known: names of the network, ``conv.weight`` for example.

    Returns:
        `state` itself when it has any of `known`, or when no prefix leads to one. Of several prefixes, the one of
        averaged weights (``generator_ema``), else the one with the most names of `known`.
    """
    if any(name in state for name in known):
        return dict(state)
    ends = {known_name.rpartition(".")[2] for known_name in known}
    counts: dict[str, int] = {}
    wanted = set(known)
    for name in state:
        if name.rpartition(".")[2] in ends:
            parts = name.split(".")
            for cut in range(1, min(len(parts), 6)):
                if ".".join(parts[cut:]) in wanted:
                    prefix = ".".join(parts[:cut]) + "."
                    counts[prefix] = counts.get(prefix, 0) + 1
    if not counts:
        return dict(state)
    best = max(counts, key=lambda prefix: ("ema" in prefix, counts[prefix]))
    return {name.removeprefix(best): value for name, value in state.items() if name.startswith(best)}


def network_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every `network_g` option of the network that the weights belong to (no ``type``).

    Raises:
        UserError: not weights of a DLGSANet, or metadata that do not fit them.
    """
    path, state = checkpoint.path, checkpoint.state
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(f"{path}: not the weights of a DLGSANet: {name} is not a tensor of real numbers")
    try:
        stated = _stated_options(checkpoint)
        if faults := contradictions(stated, state):
            raise ValueError("; ".join(faults))
        return published_options(state) | stated
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {first_line(error, 200)}") from None


def _stated_options(checkpoint: Checkpoint) -> dict[str, Any]:
    """The `network_g` options in the metadata.

    Raises:
        ValueError: they are not a table of options.
    """
    stated = json.loads(checkpoint.metadata.get("network_g", "{}"))
    if not isinstance(stated, dict):
        raise ValueError("metadata network_g is not a table of options")
    stated.pop("type", None)
    return stated


def contradicted_options(checkpoint: Checkpoint, options: Mapping[str, Any]) -> list[str]:
    """One line for each `network_g` option of a DLGSANet that differs from what the weights were trained with.

    Raises:
        UserError: the metadata cannot be read.
    """
    without_effect = ("type", "input_resolution")
    given = {k: value for k, value in (default_options() | dict(options)).items() if k not in without_effect}
    try:
        stated = _stated_options(checkpoint)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{checkpoint.path}: {first_line(error, 200)}") from None
    return [
        f"{name} is {stated[name]!r} by its metadata, {value!r} by network_g"
        for name, value in given.items()
        if name in stated and stated[name] != value
    ]


def build_network(checkpoint: Checkpoint) -> DLGSANet:
    """The network of a checkpoint in evaluation mode, float32, on the CPU, without gradients.

    Raises:
        UserError: the file's options are impossible, or its weights do not fit them.
    """
    path, options = checkpoint.path, network_options(checkpoint)
    try:
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            network = DLGSANet(**options)
        network.load_state_dict({k: v.float() for k, v in checkpoint.state.items()}, assign=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {first_line(error, 200)}") from None
    except RuntimeError as error:  # of load_state_dict: a headline, then one line for each fault
        faults = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{path}: does not fit the network: {' '.join(faults[:1])[:300]}{more}") from None
    return network.eval().requires_grad_(False)


def _in_utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def write_checkpoint(
    path: Path | str,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights; the extension chooses the format.

    A .pth is ``{"params": state, "metadata": metadata}``: the published code reads it.

    Args:
        path: ends in .pth or .safetensors.
        state: the weights under their published names, as `DLGSANet.state_dict` returns them.
        options: the network's `network_g` options, kept as JSON under metadata key ``network_g``.
        metadata: further entries: ``scale``, ``training_data``, ``date``...

    Raises:
        UserError: another extension, or the file cannot be written; nothing is left half-written.
    """
    path = Path(path)
    # Names of files may have bytes that are not UTF-8, which .safetensors cannot hold.
    entries = {_in_utf8(key): _in_utf8(value) for key, value in (metadata or {}).items()}
    if options is not None:
        entries["network_g"] = json.dumps({k: v for k, v in options.items() if k != "type"})
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_whole(path, save(state, entries or None))
    elif path.suffix == ".pth":
        with written_aside(path) as file:
            torch.save({"params": state, "metadata": entries}, file)
    else:
        raise UserError(f"{path}: a checkpoint's name must end in {' or '.join(FORMATS)}")
