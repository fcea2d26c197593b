"""The networks of option files, as functions from LR to SR images."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlgsanet.archs.checkpoint import contradicted_options, read_checkpoint
from dlgsanet.errors import UserError, is_whole, reason_of, unknown, within
from dlgsanet.evaluation.memory import memory_checked
from dlgsanet.evaluation.scoring import Network
from dlgsanet.extensions import import_all, names_in
from dlgsanet.ops import freeze
from dlgsanet.options.parse import load_yaml


def load_network_options(path: str) -> dict[str, Any]:
    """The options that evaluation uses: `name`, `scale`, `network_g`, `path`, `model_type`, `manual_seed`.

    Nothing else is checked, so that option files of other projects can be used as they are. Files named by the key
    `import` are imported.

    Raises:
        UserError: the file cannot be read, or one of these options is missing or wrong.
    """
    options = load_yaml(path)
    imports = import_all(names_in(options.get("import")), near=Path(path).parent, asked_by=f"{path}: import")
    network = options.get("network_g")
    if not isinstance(network, dict):
        raise UserError(f"{path}: network_g: is missing")
    network_class(network, path)
    scale = options.get("scale", network.get("upscale", network.get("scale")))
    if not is_whole(scale, 1):
        raise UserError(f"{path}: scale: {scale!r} is not a whole number from 1 up")
    paths = options.get("path") or {}
    if not isinstance(paths, dict):
        raise UserError(f"{path}: path: a section is expected, found {paths!r}")
    seed = options.get("manual_seed", 0)
    return {
        "name": str(options.get("name") or Path(path).stem),
        "scale": scale,
        "network_g": network,
        "path": dict(paths),
        "model_type": options.get("model_type", "DLGSANetModel"),
        "manual_seed": seed if isinstance(seed, int) else 0,
        "imports": imports,
    }


def input_channels(network: Mapping[str, Any]) -> int:
    """Channels of the images that a `network_g` is for."""
    return network.get("num_in_ch", network.get("in_chans", 3))


def network_class(network: Mapping[str, Any], where: str) -> Any:
    """The class in BasicSR's registry that `network_g` names.

    Raises:
        UserError: there is no such class; the message lists those that there are.
    """
    from dlgsanet.options.check import registry

    known, name = registry("ARCH"), network.get("type")
    if not isinstance(name, str) or name not in known:
        choices = unknown("network", name, known)
        raise UserError(f"{where}: network_g.type: {choices}, or give the file that registers it with --import")
    return known[name]


def registered_network(options: Mapping[str, Any], where: str = "network_g") -> nn.Module:
    """The network of BasicSR's registry, ours included, that the section `network_g` describes; random weights.

    Raises:
        UserError: options that its class refuses.
    """
    arguments = {key: value for key, value in options.items() if key != "type"}
    build = network_class(options, where)
    try:
        return build(**arguments)
    # Classes of other projects may raise any exception for options that they do not support.
    except Exception as error:
        raise UserError(f"{where}: {options['type']}: {reason_of(error)}") from error


def model_of(options: dict[str, Any]) -> Any:
    """BasicSR's model of a test option file (checked and completed), with its weights.

    Raises:
        UserError: the weights cannot be read, are of another network, or were trained with other options.
    """
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from dlgsanet.models.build import build_model
    from basicsr.utils import get_root_logger

    from dlgsanet.options.check import registry

    get_root_logger(log_level=logging.WARNING)  # BasicSR's models print themselves
    if options["model_type"] not in registry("MODEL"):
        print(f"model_type {options['model_type']} is not registered: the network runs by itself", file=sys.stderr)
        options = options | {"model_type": "DLGSANetModel"}
    weights = options["path"].get("pretrain_network_g")
    if weights:
        with within("path.pretrain_network_g"):
            _check_metadata(weights, options)
    registered_network(options["network_g"])  # its errors are its own, not those of the weights
    try:
        return build_model(options)
    except UserError:
        raise
    # Any error of the model, and load_state_dict's list of weights that do not fit.
    except Exception as error:
        if not weights:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        reason = lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
        raise UserError(f"{weights}: {reason}{more}") from error


def _check_metadata(weights: str, options: Mapping[str, Any]) -> None:
    """Weights run with other options than they were trained with give worse pictures, and nothing else shows it."""
    if options["network_g"]["type"] != "DLGSANet" or options["path"].get("strict_load_g") is False:
        return
    checkpoint = read_checkpoint(weights, options["path"].get("param_key_g"))
    if faults := contradicted_options(checkpoint, options["network_g"]):
        raise UserError(
            f"{weights}: was trained with other options: {'; '.join(faults)}; change network_g, or set "
            "path.strict_load_g: false to go on"
        )


def network_of(options: dict[str, Any]) -> tuple[Network, torch.device]:
    """The model of a test option file (checked and completed) as a function, and the device it is on.

    It is BasicSR's model that upscales, so that one which pads or tiles does so here as in its own tests.

    Raises:
        UserError: see `model_of`.
    """
    model = model_of(options)
    freeze(model.net_g)
    from basicsr.models.sr_model import SRModel  # after the plugin

    def upscale(lq: Tensor) -> Tensor:
        model.feed_data({"lq": lq})
        model.test()
        return model.output

    # A model with a test of its own may divide the image.
    whole = type(model).test is SRModel.test
    return memory_checked(upscale, model.net_g) if whole else upscale, model.device
