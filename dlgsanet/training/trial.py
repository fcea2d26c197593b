"""A try of each data set, and of the network on samples of them, before work begins."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from torch.utils.data import default_collate

from dlgsanet.archs.parts import copy_of
from dlgsanet.errors import UserError, counted, reason_of
from dlgsanet.memory import is_out_of_memory
from dlgsanet.options.table import MODELS

CROP = 192  # 3 * 64: windows and strides mostly divide it


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

    It is tried in training mode and in evaluation mode. Nothing of the model changes.

    Args:
        model: as built.
        options: of the run.
        batch: of `batch_of`.

    Raises:
        UserError: it does not; the message names the options.
    """
    if options["model_type"] not in MODELS:
        return
    network, lq, gt = copy_of(model.get_bare_model(model.net_g)), batch["lq"], batch["gt"]
    what, size = f"network_g: {type(network).__name__}", f"{lq.shape[-1]}x{lq.shape[-2]}"
    two = torch.cat([lq, lq]).to(model.device)  # batch normalisation may refuse one
    for mode in ("training", "evaluation"):
        with torch.no_grad(), _taken(what, f"the {size} samples of datasets.train"):
            out = network.train(mode == "training").forward(two)  # not compiled for one sample
        if not isinstance(out, torch.Tensor):
            raise UserError(
                f"{what} returns a {type(out).__name__} in {mode} mode; it must return one tensor, [B, C, H, W]"
            )
    if out.shape[1:] != gt.shape[1:]:
        made, wanted = (f"{x.shape[-1]}x{x.shape[-2]} pixels of {counted(x.shape[-3], 'channel')}" for x in (out, gt))
        raise UserError(
            f"{what} makes {made} of the {size} samples of datasets.train, but their originals have {wanted}; "
            f"scale is {options['scale']}: set the network's own (upscale, scale) to it"
        )


def try_validation(model: BaseModel, options: Mapping[str, Any], name: str, sample: Any) -> None:
    """Check that the model upscales an image of a validation set. Training may otherwise end at the first validation.

    Of a large image a crop is tried, whose sides have the same remainders when divided by `CROP` and its divisors.

    Args:
        model: as built.
        options: of the run.
        name: of the set.
        sample: of the set; `batch_of` takes it.

    Raises:
        UserError: the network does not take its size.
    """
    if options["model_type"] not in MODELS or options["train"]["compile"]:  # not compiled for one image
        return
    batch = default_collate([sample])
    height, width = batch["lq"].shape[2:]
    tried = [side if side < 2 * CROP else CROP + side % CROP for side in (height, width)]
    batch["lq"] = batch["lq"][..., : tried[0], : tried[1]]
    network = type(model.get_bare_model(model.net_g)).__name__
    images = f"the {width}x{height} pixels of an image of {name} (tried with {tried[1]}x{tried[0]}; it may have to pad)"
    with _taken(f"network_g: {network}", images):
        model.feed_data(batch)
        model.test()


@contextmanager
def _taken(what: str, images: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # networks raise all kinds for sizes and channels that they do not take
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        raise UserError(f"{what} cannot take {images}: {reason_of(error, 200)}") from error
