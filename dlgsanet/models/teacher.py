"""A teacher: a trained network whose output is a second target of training (distillation)."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlgsanet.archs.checkpoint import build_network, read_checkpoint
from dlgsanet.archs.detect import is_dlgsanet
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.errors import UserError, brief, counted, faults_of, reason_of
from dlgsanet.memory import is_out_of_memory
from dlgsanet.models.weights import load_weights

logger = logging.getLogger("dlgsanet")


def build_teacher(
    options: Mapping[str, Any], scale: int, device: torch.device, channels: int = 3, size: int = 16
) -> Callable[[Tensor], Tensor]:
    """The teacher of a `train.teacher_opt` section, in evaluation mode and without gradients.

    Args:
        options: `path` names its weights. `network`, a registered class and its arguments, may be left out for weights
            of a DLGSANet and of any network that spandrel recognizes.
        scale: the factor of enlargement that it must have.
        device: where it computes.
        channels: of the images.
        size: sides of an image that it is tried with.

    Returns:
        A function from LQ images `[B, C, H, W]` in [0, 1] to `[B, C, scale * H, scale * W]`.

    Raises:
        UserError: the weights cannot be read or do not fit, or the teacher does not take such images or enlarges them
            by another factor.
    """
    path = options["path"]
    if options.get("network"):
        from basicsr.archs import build_network as build_registered

        with faults_of("network"):
            network = build_registered(dict(options["network"]))
        load_weights(network, path)
    else:
        checkpoint = read_checkpoint(path)
        network = build_network(checkpoint) if is_dlgsanet(checkpoint.state) else None
    if network is None:
        teach, name = _of_spandrel(path, checkpoint.state, device)
    else:
        teach, name = network.to(device), type(network).__name__
        _make_ready(network, device)

    @torch.no_grad()
    def target(lq: Tensor) -> Tensor:
        return teach(lq).float()

    try:
        probe = target(torch.zeros(1, channels, size, size, device=device))
    except Exception as error:  # whatever a network raises for channels that it does not take
        if is_out_of_memory(error):
            raise
        images = f"images of {counted(channels, 'channel')}, {size}x{size}"
        raise UserError(f"{path}: {name} cannot take {images}: {reason_of(error, 200)}") from error
    if probe.shape[1:] != (channels, size * scale, size * scale):
        made = f"it enlarges by {probe.shape[3] / size:g}, to {counted(probe.shape[1], 'channel')}"
        raise UserError(f"{path}: {made}, but scale is {scale} and images have {channels}")
    logger.info("Teacher: %s, %s", name, path)
    return target


def _of_spandrel(path: str, state: dict[str, Tensor], device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    hint = "name its class and arguments in train.teacher_opt.network"
    try:
        import spandrel
    except ImportError as error:
        raise UserError(f"{path}: not weights of a DLGSANet, and spandrel does not load ({error}); {hint}") from None
    try:
        # From our own reader's tensors: spandrel's would unpickle.
        model = spandrel.ModelLoader(device=device).load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except Exception as error:  # spandrel raises what its architectures raise
        raise UserError(f"{path}: spandrel does not recognize it ({brief(error, None)}); {hint}") from None
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise UserError(f"{path}: a {model.architecture.name} does not enlarge single images; choose another teacher")
    _make_ready(model.model, device)
    return model, model.architecture.name


def _make_ready(network: nn.Module, device: torch.device) -> None:
    network.eval().requires_grad_(False)
    if device.type == "cpu" and not isinstance(network, DLGSANet):
        # Most networks take 5 to 30% less time so.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
