"""Loading the weights of a checkpoint file into a network; what does not fit is named."""

import logging
from pathlib import Path

from basicsr.models.base_model import BaseModel
from torch import nn

from dlgsanet.archs.checkpoint import Checkpoint, contradicted_options, read_checkpoint, without_wrapper
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError

logger = logging.getLogger("dlgsanet")


def load_weights(network: nn.Module, path: Path | str, key: str | None = None, strict: bool = True) -> None:
    """Load a .pth or .safetensors file into a network.

    Args:
        network: gets the weights, under the names of its `state_dict`.
        path: the file.
        key: `params` or `params_ema` of a .pth. None: the averaged weights where there are any.
        strict: every weight must be in the file, of the right shape, and no other. False leaves alone what does not
            fit, and says so.

    Raises:
        UserError: the file cannot be read, or its weights do not fit; the message names the file and the first faults.
    """
    load_checkpoint(network, read_checkpoint(path, key), strict)


def load_checkpoint(network: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> None:
    """As `load_weights`, of a checkpoint that has been read."""
    path, wanted = checkpoint.path, network.state_dict()
    given = without_wrapper(checkpoint.state, wanted)
    faults = [f"{name} is missing in the file" for name in wanted if name not in given]
    faults += [f"{name} is not of this network" for name in given if name not in wanted]
    shapes = {name: (list(given[name].shape), list(wanted[name].shape)) for name in given if name in wanted}
    resized = [name for name, (there, here) in shapes.items() if there != here]
    # First, since they tell most: a file of another size of network.
    faults = [f"{name} is {shapes[name][0]} in the file, {shapes[name][1]} in the network" for name in resized] + faults
    if faults:
        told = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        if strict:
            raise UserError(f"{path}: its weights do not fit network_g: {told}")
        logger.warning("%s: loaded in part: %s", path, told)
    fitting = {name: given[name] for name in shapes if name not in resized}
    if not fitting:
        raise UserError(f"{path}: none of its weights fit network_g: {told}")
    network.load_state_dict(fitting, strict=False)


def load_network(
    model: BaseModel, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
) -> None:
    """`load_network` of every BasicSR model: SRModel and SwinIRModel read the same files as ours.

    BasicSR's own reads .pth files alone, and does not name what is wrong with one.
    """
    # Not `param_key`: the models pass "params" where the option file names no key; averaged weights are better.
    network, checkpoint = model.get_bare_model(net), read_checkpoint(load_path, model.opt["path"].get("param_key_g"))
    if isinstance(network, DLGSANet):
        for fault in contradicted_options(checkpoint, model.opt["network_g"]):
            logger.warning("%s: %s", load_path, fault)
    load_checkpoint(network, checkpoint, strict)
