"""`load_model`: from a file or name to a network that is ready to upscale pictures."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from dlgsanet.archs.checkpoint import Checkpoint, build_network, network_options, read_checkpoint
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.device import find_device
from dlgsanet.errors import ArgumentError, unknown
from dlgsanet.inference.weights import DEFAULT_NAME, find_weights

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_model(
    weights: str | Path = DEFAULT_NAME,
    scale: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    outscale: float = 2,
) -> DLGSANet:
    """A network with its weights, in evaluation mode and without gradients.

    Args:
        weights: a .safetensors or .pth file, which is enough by itself, or the name of included weights: ``Tiny``,
            ``Tiny_jpeg``, ``DLGSANet_Tiny_x2``, ...
        scale: the scale factor. None: that of the file; for the name of a size, the smallest from `outscale` up.
        device: as PyTorch names it. None: the GPU if there is one, else the CPU.
        precision: ``fp32``, ``fp16`` or ``bf16``, of weights and features.
        outscale: the factor that the result will be resized to.

    Returns:
        The network: [B, in_chans, H, W] in [0, 1] -> [B, in_chans, upscale * H, upscale * W].

    Raises:
        UserError: weights that are missing, damaged or of another scale; an unknown device or precision.
    """
    if precision not in PRECISIONS:
        raise ArgumentError("precision", unknown("precision", precision, PRECISIONS))
    network = build_network(load_checkpoint(weights, scale, outscale))
    return network.to(find_device(device), PRECISIONS[precision])


def load_checkpoint(weights: str | Path, scale: int | None, outscale: float = 2) -> Checkpoint:
    """The file behind `load_model`'s arguments, its metadata completed: ``network_g`` has every option.

    Raises:
        UserError: as `load_model`.
    """
    checkpoint = read_checkpoint(find_weights(weights, scale, outscale))
    options = network_options(checkpoint)
    if scale is not None and scale != options["upscale"]:
        problem = f"{checkpoint.path} upscales x{options['upscale']}, not x{scale}; leave it out"
        raise ArgumentError("scale", problem)
    return replace(checkpoint, metadata=checkpoint.metadata | {"network_g": json.dumps(options)})
