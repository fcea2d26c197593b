"""Loading the weights of a checkpoint file into a network; what does not fit is named."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlgsanet.archs.checkpoint import contradicted_options, read_checkpoint, without_wrapper
from dlgsanet.errors import UserError

logger = logging.getLogger("dlgsanet")


def load_weights(network: nn.Module, path: Path | str, key: str | None = None, strict: bool = True) -> None:
    """Load a .pth or .safetensors file into a network.

    Args:
        network: gets the weights, under the names of its `state_dict`.
        path: the file.
        key: `params` or `params_ema` of a .pth. None: the averaged weights where there are any.
        strict: the file must have every weight, in the right shape, and no other. False: what does not fit is skipped
            and logged.

    Raises:
        UserError: the file cannot be read, or its weights do not fit; the message names the file and the first faults.
    """
    wanted = network.state_dict()
    given = without_wrapper(read_checkpoint(path, key).state, wanted)
    shown = misfits(given, wanted)
    if shown and strict:
        raise UserError(f"{path}: its weights do not fit network_g: {shown}")
    if shown:
        logger.warning("%s: loaded in part: %s", path, shown)
    fitting = {n: weight for n, weight in given.items() if n in wanted and weight.shape == wanted[n].shape}
    if not fitting:
        raise UserError(f"{path}: none of its weights fit network_g: {shown}")
    network.load_state_dict(fitting, strict=False)


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What a file's weights and those of a network differ in, the first three faults; empty: they fit."""
    shapes = {name: (list(given[name].shape), list(wanted[name].shape)) for name in given if name in wanted}
    # These come first: they show that the file is of a network of another size.
    faults = [
        f"{name} is {there} in the file, {here} in the network"
        for name, (there, here) in shapes.items()
        if there != here
    ]
    faults += [f"{name} is missing in the file" for name in wanted if name not in given]
    faults += [f"{name} is not of this network" for name in given if name not in wanted]
    return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")


def warn_of_other_options(path: Path | str, key: str | None, options: Mapping[str, Any]) -> None:
    """Log where the `network_g` options of a DLGSANet differ from those that the weights were trained with."""
    if options["type"] == "DLGSANet":
        for fault in contradicted_options(read_checkpoint(path, key), options):
            logger.warning("%s: %s", path, fault)
