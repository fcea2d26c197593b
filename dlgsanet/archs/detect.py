"""Detect the `network_g` options of a network from the names and shapes of its state dict."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dlgsanet.archs.sizes import TLC_KERNELS

# Every published state dict has the first name, and names that begin with the second.
SHALLOW = "overlap_embed.0.proj.weight"
_DEEP = "deep_feature_extraction"


def is_dlgsanet(names: Mapping[str, Any]) -> bool:
    """Whether the (published) names of a state dict are those of a DLGSANet."""
    return SHALLOW in names and any(name.startswith(f"{_DEEP}.") for name in names)


def proven_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that follow from the shapes of a state dict with published names.

    Not among them: `tlc_flag`, `tlc_kernel`, `activation`, `topk_ratio`, `img_range`, and, where there are local and
    global layers, whether `buildblock_type` is `sparseedge` or `edge`. See `published_options`.

    Raises:
        ValueError: not the state dict of a DLGSANet.
    """
    if not is_dlgsanet(state):
        raise ValueError(
            f"not a DLGSANet: there is no {SHALLOW}; benchmark and test take other networks (docs/own_network.md)"
        )
    try:
        return _proven_options(state)
    except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
        missing = f"there is no {error.args[0]}" if isinstance(error, KeyError) else "its shapes do not fit each other"
        raise ValueError(f"not a whole DLGSANet: {missing}") from None


def _proven_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    dim, in_chans = state[SHALLOW].shape[:2]
    body_norm = f"{_DEEP}.0.body.weight" in state
    numbers = [name.split(".") for name in state if name.startswith(f"{_DEEP}.")]
    groups = {parts[1] for parts in numbers if len(parts) > 4}  # DEEP.{group}.body.{layer}.{part}...
    layers = {parts[3] for parts in numbers if len(parts) > 5 and parts[1] == str(int(body_norm))}
    first = f"{_DEEP}.{int(body_norm)}.body"
    has_local = f"{first}.0.norm1.body.weight" in state
    has_global = any(name.startswith(first) and "restormer_attn" in name for name in state)
    options: dict[str, Any] = {
        "in_chans": in_chans,
        "dim": dim,
        "groups": len(groups),
        "blocks": len(layers) // (2 if has_local and has_global else 1),
        "body_norm": body_norm,
        **_reconstruction_options(state, in_chans),
    }
    if not has_global:
        options["buildblock_type"] = "idynamic"
    if not has_local:
        options["buildblock_type"] = "restormer"
    if has_local:
        options |= _local_options(state, f"{first}.0", dim)
    if has_global:
        options |= _global_options(state, f"{first}.{int(has_local)}", dim)
    return options


def _reconstruction_options(state: Mapping[str, Tensor], in_chans: int) -> dict[str, Any]:
    if "upsample.0.weight" not in state:
        return {"upsampler": "", "upscale": 1}
    grown = state["upsample.0.weight"].shape[0]
    if "conv_before_upsample.0.weight" not in state:
        return {"upsampler": "pixelshuffledirect", "upscale": math.isqrt(grown // in_chans)}
    features = state["conv_before_upsample.0.weight"].shape[0]
    stages = sum(name.startswith("upsample.") and name.endswith(".weight") for name in state)
    return {"upsampler": "pixelshuffle", "upscale": math.isqrt(grown // features) ** stages}


def _local_options(state: Mapping[str, Tensor], layer: str, dim: int) -> dict[str, Any]:
    options = _feed_forward_options(state, f"{layer}.IDynamic_ffn", "idynamic", dim)
    static = f"{layer}.IDynamicDWConv.conv.weight"
    if static in state:
        return options | {"idynamic": False, "window_size": state[static].shape[-1]}
    window_size = state[f"{layer}.IDynamicDWConv.conv.conv1.1.weight"].shape[-1]
    filters = state[f"{layer}.IDynamicDWConv.conv.conv2.0.weight"].shape[0] // window_size**2
    return options | {"idynamic": True, "window_size": window_size, "idynamic_num_heads": dim // filters}


def _global_options(state: Mapping[str, Tensor], layer: str, dim: int) -> dict[str, Any]:
    options = _feed_forward_options(state, f"{layer}.restormer_ffn", "restormer", dim)
    return options | {"restormer_num_heads": state[f"{layer}.restormer_attn.temperature"].shape[0]}


def _feed_forward_options(state: Mapping[str, Tensor], name: str, kind: str, dim: int) -> dict[str, Any]:
    gated = f"{name}.project_out.weight" in state
    hidden = state[f"{name}.project_out.weight"].shape[1] if gated else state[f"{name}.body.0.weight"].shape[0]
    factor = hidden / dim
    if int(dim * factor) < hidden:  # the network rounds down
        factor = math.nextafter(factor, math.inf)
    return {f"{kind}_ffn_type": "GDFN" if gated else "BaseFFN", f"{kind}_ffn_expansion_factor": factor}


def published_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Every option of the network: those that follow from the shapes, and the published values of the others.

    Assumed: the paper's `sparseedge` with ReLU where there are local and global layers, test-time local
    conversion with windows of 96, 72 and 48 pixels for x2, x3 and x4 (48 for other scales), `img_range` 1.

    Raises:
        ValueError: not the state dict of a DLGSANet.
    """
    proven = proven_options(state)
    taken = {
        "buildblock_type": "sparseedge",
        "activation": "relu",
        "tlc_flag": True,
        "tlc_kernel": TLC_KERNELS.get(proven["upscale"], 48),
        "img_range": 1.0,
    }
    return taken | proven


def contradictions(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """One line for each option that contradicts the shapes.

    Raises:
        ValueError: not the state dict of a DLGSANet.
    """
    proven = proven_options(state)
    return [
        f"{name} is {options[name]!r} by the metadata, {value!r} by the weights"
        for name, value in proven.items()
        if name in options and not _agree(name, options[name], value, proven["dim"])
    ]


def _agree(name: str, stated: Any, proven: Any, dim: int) -> bool:
    if name.endswith("_expansion_factor"):  # several factors round to one width
        return isinstance(stated, (int, float)) and math.isfinite(stated) and int(dim * stated) == int(dim * proven)
    return bool(stated == proven)
