"""The methods that are compared: bicubic, DLGSANets by weight file, and networks of BasicSR by option file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint
from dlgsanet.archs.sizes import size_of
from dlgsanet.errors import UserError, counted
from dlgsanet.evaluation.journal import digest, digest_of_package
from dlgsanet.evaluation.memory import memory_checked
from dlgsanet.evaluation.networks import (
    input_channels,
    load_network_options,
    model_of,
    network_class,
    network_of,
    registered_network,
)
from dlgsanet.evaluation.rows import BICUBIC
from dlgsanet.evaluation.scoring import Network
from dlgsanet.extensions import sources_of
from dlgsanet.files import expanded, printable
from dlgsanet.inference.self_ensemble import self_ensemble
from dlgsanet.ops import freeze

OPTION_FILES = (".yml", ".yaml")


@dataclass(frozen=True)
class Entry:
    """A method at one scale.

    Attributes:
        source: the weight file or option file; None: bicubic.
        digest: of everything that its pictures depend on.
        size: the published size, if it is one.
        ensemble: whether it is the self-ensemble of the network.
        options: those of the option file; for a weight file only `network_g`.
    """

    name: str
    scale: int
    source: Path | None = None
    digest: str = ""
    size: str | None = None
    ensemble: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def bicubic_entry(scale: int) -> Entry:
    return Entry(BICUBIC, scale, digest=digest_of_package())


def read_entry(argument: str, ensemble: bool = False, allow_random_weights: bool = False) -> Entry:
    """An entry from `FILE` or `NAME=FILE`. FILE is a weight file of a DLGSANet, or an option file that names weights.

    Raises:
        UserError: the file cannot be read, is neither, names no weights and none are allowed, or its network is not
            one for RGB images.
    """
    name, _, file = argument.rpartition("=")
    path = expanded(file)
    if path.suffix in OPTION_FILES:
        options = load_network_options(str(path))
        _check_class(options["network_g"], path)
        weights = options["path"].get("pretrain_network_g")
        if not weights and not allow_random_weights:
            raise UserError(f"{path}: path.pretrain_network_g is empty; name weights or give --random-weights")
        if weights:
            options["path"]["pretrain_network_g"] = weights = str(expanded(weights))
            if not Path(weights).is_file():
                raise UserError(f"{path}: path.pretrain_network_g: there is no file {weights}")
        network, scale = options["network_g"], options["scale"]
        content = [Path(weights)] if weights else [options.get("manual_seed", 0)]
        content += [options["model_type"], *(options["path"].get(key) for key in ("param_key_g", "strict_load_g"))]
        content += _code_of(network)
        name = name or options["name"]
    else:
        network = {"type": "DLGSANet", **network_options(read_checkpoint(path))}
        options, scale, content = {"network_g": network}, network["upscale"], [path]
        name = printable(name or path.stem)
    if (channels := input_channels(network)) != 3:
        raise UserError(
            f"{path}: is for images of {counted(channels, 'channel')}, not for RGB; `dlgsanet test` scores it on luma"
        )
    if Path(name).name != name or name in ("..", BICUBIC):
        raise UserError(f"{argument}: {name!r} cannot name a network: its pictures go to a folder of that name")
    size = size_of(network) if network["type"] == "DLGSANet" else None
    known = digest(network, ensemble, digest_of_package(), *content)
    return Entry(name + ("+" if ensemble else ""), scale, path, known, size, ensemble, options)


def _code_of(network: dict[str, Any]) -> list[Path]:
    """The files of a network's class, unless it is ours: the same weights give other pictures when they are changed."""
    return [] if network["type"] == "DLGSANet" else sources_of(network_class(network, "network_g").__module__)


def _check_class(network: dict[str, Any], path: Path) -> None:
    """Options that the class refuses are found before any picture is computed, without memory for its weights."""
    if network["type"] == "DLGSANet":
        with torch.device("meta"):
            registered_network(network, f"{path}: network_g")


def network_for(entry: Entry, device: torch.device) -> Network:
    """The entry's network in evaluation mode on a device, as a function.

    Raises:
        UserError: the weights do not fit the network.
    """
    assert entry.source is not None, "bicubic is no network"
    if entry.source.suffix in OPTION_FILES:
        network, _ = network_of(_completed(entry, device))
    else:
        module = trained_module(entry, device)
        freeze(module)
        network = memory_checked(module, module)
    return self_ensemble(network) if entry.ensemble else network


def trained_module(entry: Entry, device: torch.device) -> nn.Module:
    """The entry's network in evaluation mode on a device, as a module: it can be differentiated and inspected.

    Raises:
        UserError: the weights do not fit the network.
    """
    assert entry.source is not None, "bicubic is no network"
    if entry.source.suffix in OPTION_FILES:
        model = model_of(_completed(entry, device))
        return model.get_bare_model(model.net_g).eval().requires_grad_(False)
    return build_network(read_checkpoint(entry.source)).to(device)


def _completed(entry: Entry, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(entry.options.get("manual_seed", 0))  # for random weights, where they are allowed
    if device.type == "cuda":
        torch.cuda.set_device(device)  # BasicSR's models take the current one
    return entry.options | {"is_train": False, "dist": False, "num_gpu": int(device.type == "cuda")}


def module_of(entry: Entry) -> nn.Module:
    """The entry's network as a module, for counting; its weights do not matter.

    Raises:
        UserError: see `registered_network`.
    """
    return registered_network(entry.options["network_g"]).eval()
