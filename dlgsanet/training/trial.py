"""A try of the network on one training sample, before work begins."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel

from dlgsanet.errors import UserError, brief
from dlgsanet.memory import is_out_of_memory

MODELS = ("DLGSANetModel", "SRModel", "SwinIRModel")  # models of one's own may call their networks in other ways


def try_network(model: BaseModel, options: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
    """Check that `net_g` takes samples as the training set has them, and enlarges them to the size of the originals.

    Nothing of the model changes.

    Raises:
        UserError: it does not; the message names the options.
    """
    if options["model_type"] not in MODELS or not {"lq", "gt"} <= sample.keys():
        return
    network, lq, gt = model.get_bare_model(model.net_g), sample["lq"], sample["gt"]
    what, size = f"network_g: {type(network).__name__}", f"{lq.shape[-1]}x{lq.shape[-2]}"
    training = network.training
    try:
        with torch.no_grad():
            out = network.eval().forward(lq[None].to(model.device))  # not compiled for one sample
    except Exception as error:  # networks raise all kinds for sizes and channels that they do not take
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        reason = brief(error, 200) or type(error).__name__
        raise UserError(f"{what} cannot take the {size} samples of datasets.train: {reason}") from error
    finally:
        network.train(training)
    if isinstance(out, torch.Tensor) and out.shape[1:] != gt.shape:
        made, wanted = (f"{x.shape[-1]}x{x.shape[-2]} pixels of {x.shape[-3]} channels" for x in (out, gt))
        raise UserError(
            f"{what} makes {made} of the {size} samples of datasets.train, but their originals have {wanted}; "
            f"scale is {options['scale']}: set the network's own (upscale, scale) to it"
        )
