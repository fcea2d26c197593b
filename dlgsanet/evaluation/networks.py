"""Networks as evaluation sees them: functions from LR to SR images, whatever made them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlgsanet.errors import UserError
from dlgsanet.evaluation.scoring import Network
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import check_options


def load_option_file(path: str) -> dict[str, Any]:
    """An option file, checked: of training if it has a section `train`, else of testing.

    Raises:
        UserError: the file cannot be read, or has faults.
    """
    options = load_yaml(path)
    check_options(options, "train" in options, path)
    return options


def registered_network(options: Mapping[str, Any]) -> nn.Module:
    """The network of BasicSR's registry, ours included, that the section `network_g` describes; random weights.

    Raises:
        UserError: options that its class refuses.
    """
    from dlgsanet.options.check import registry

    arguments = {key: value for key, value in options.items() if key != "type"}
    try:
        return registry("ARCH")[options["type"]](**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"network_g: {error}") from error


def model_of(options: dict[str, Any]) -> Any:
    """BasicSR's model of a test option file (checked and completed), with its weights.

    Raises:
        UserError: the weights cannot be read or are of another network.
    """
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.models import build_model
    from basicsr.utils import get_root_logger

    get_root_logger(log_level=logging.WARNING)  # BasicSR's models print themselves
    try:
        return build_model(options)
    except UserError:
        raise
    # Whatever torch.load stumbles over in a damaged file, and load_state_dict's list of all that does not fit.
    except Exception as error:
        if not options["path"].get("pretrain_network_g"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        reason = lines[1 if len(lines) > 1 else 0] if lines else type(error).__name__
        raise UserError(f"{options['path']['pretrain_network_g']}: {reason}{more}") from error


def network_of(options: dict[str, Any]) -> tuple[Network, torch.device]:
    """The model of a test option file (checked and completed) as a function, and the device it is on.

    It is BasicSR's model that enlarges, so that one which pads or tiles does so here as in its own tests.

    Raises:
        UserError: see `model_of`.
    """
    model = model_of(options)

    def enlarge(lq: Tensor) -> Tensor:
        model.feed_data({"lq": lq})
        model.test()
        return model.output

    return enlarge, model.device
