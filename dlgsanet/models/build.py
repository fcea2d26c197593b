"""Building the model that an option file names."""

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlgsanet.archs.checkpoint import read_checkpoint
from dlgsanet.errors import UserError, within
from dlgsanet.models.weights import load_weights


class _ReadsAnyWeights(BaseModel):
    """A model of BasicSR that reads every weights file that ours reads, .safetensors and bare state dicts too, and
    trains on several ranks without GPUs."""

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        with within("path.pretrain_network_g"):
            load_weights(self.get_bare_model(net), load_path, _key(load_path, param_key), strict)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.opt["dist"] and self.device.type == "cpu":  # BasicSR's own asks for a GPU
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get("find_unused_parameters", False))
        return super().model_to_device(net)


def _key(path: str, wanted: str | None) -> str | None:
    """Which state dict of a file to read: the wanted one or else `params`, as in BasicSR. None: the file's best."""
    for key in (wanted, "params") if wanted else ():
        with suppress(UserError):
            read_checkpoint(path, key)
            return key
    return None


def build_model(options: Mapping[str, Any]) -> BaseModel:
    """The model of an option file (checked and completed), with its network and weights.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    options = deepcopy(dict(options))  # BasicSR's models take their options apart
    options["path"].setdefault("param_key_g", None)  # they read `params` where it is left out
    model = MODEL_REGISTRY.get(options["model_type"])
    if model.load_network is BaseModel.load_network:
        model = type(model.__name__, (_ReadsAnyWeights, model), {})
    return model(options)
