"""A try of each data set, and of the network on one training sample, before work begins."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from torch.utils.data import default_collate

from dlgsanet.errors import UserError, reason_of
from dlgsanet.memory import is_out_of_memory

MODELS = ("DLGSANetModel", "SRModel", "SwinIRModel")  # models of one's own may call their networks in other ways


def batch_of(sample: Any, options: Mapping[str, Any], *, originals: bool) -> Any:
    """A batch of one sample: `lq` [1, C, H, W] and, with originals, `gt` [1, C, scale * H, scale * W].

    Raises:
        UserError: a data set of the user's own has other samples.
    """
    try:
        batch = default_collate([sample])
    except Exception as error:  # collating raises many kinds
        raise UserError(f"no batch can be made of its samples: {reason_of(error, 200)}") from error
    if options["model_type"] not in MODELS:
        return batch
    wanted = ("lq", "gt") if originals else ("lq",)
    found = batch if isinstance(batch, Mapping) else {}
    if wrong := [key for key in wanted if getattr(found.get(key), "ndim", 0) != 4]:
        raise UserError(f"its samples must be dictionaries with {' and '.join(wanted)}, [C, H, W]; {wrong[0]} is not")
    (height, width), scale = batch["lq"].shape[2:], options["scale"]
    if originals and batch["gt"].shape[2:] != (scale * height, scale * width):
        size = "x".join(map(str, reversed(batch["gt"].shape[2:])))
        raise UserError(f"a sample has lq of {width}x{height} and gt of {size}; scale is {scale}")
    return batch


def try_network(model: BaseModel, options: Mapping[str, Any], batch: Any) -> None:
    """Check that `net_g` takes samples as the training set has them, and enlarges them to the size of the originals.

    Nothing of the model changes.

    Args:
        model: as built.
        options: of the run.
        batch: of `batch_of`.

    Raises:
        UserError: it does not; the message names the options.
    """
    if options["model_type"] not in MODELS:
        return
    network, lq, gt = model.get_bare_model(model.net_g), batch["lq"], batch["gt"]
    what, size = f"network_g: {type(network).__name__}", f"{lq.shape[-1]}x{lq.shape[-2]}"
    training = network.training
    try:
        with torch.no_grad():
            out = network.eval().forward(lq.to(model.device))  # not compiled for one sample
    except Exception as error:  # networks raise all kinds for sizes and channels that they do not take
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        what = f"{what} cannot take the {size} samples of datasets.train"
        raise UserError(f"{what}: {reason_of(error, 200)}") from error
    finally:
        network.train(training)
    if not isinstance(out, torch.Tensor):
        raise UserError(f"{what} returns a {type(out).__name__}; it must return one tensor, [B, C, H, W]")
    if out.shape != gt.shape:
        made, wanted = (f"{x.shape[-1]}x{x.shape[-2]} pixels of {x.shape[-3]} channels" for x in (out, gt))
        raise UserError(
            f"{what} makes {made} of the {size} samples of datasets.train, but their originals have {wanted}; "
            f"scale is {options['scale']}: set the network's own (upscale, scale) to it"
        )
