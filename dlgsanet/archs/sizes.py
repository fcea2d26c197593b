"""The published sizes of DLGSANet (Li et al., ICCV 2023, section 4.1): Tiny, Light and Large at x2, x3 and x4."""

from collections.abc import Mapping
from typing import Any

from dlgsanet.archs.dlgsanet import default_options
from dlgsanet.errors import unknown

SIZES: dict[str, dict[str, int]] = {
    "Tiny": {"dim": 48, "groups": 3, "blocks": 3},
    "Light": {"dim": 48, "groups": 4, "blocks": 3},
    "Large": {"dim": 90, "groups": 6, "blocks": 4},
}
# Side of the windows of test-time local conversion in LR pixels, by scale.
TLC_KERNELS = {2: 96, 3: 72, 4: 48}
SCALES = tuple(TLC_KERNELS)


def size_options(size: str, scale: int) -> dict[str, Any]:
    """The `network_g` options (without `type`) of a published size.

    Raises:
        ValueError: unknown size or scale.
    """
    if size not in SIZES:
        raise ValueError(unknown("size", size, SIZES))
    if scale not in SCALES:
        raise ValueError(unknown("scale", scale, SCALES))
    shared = {"buildblock_type": "sparseedge", "upsampler": "pixelshuffledirect", "upscale": scale}
    return SIZES[size] | shared | {"tlc_kernel": TLC_KERNELS[scale]}


def size_of(options: Mapping[str, Any]) -> str | None:
    """The published size that these `network_g` options of a DLGSANet describe, or None."""
    defaults = default_options()
    without_effect = {"type": None, "input_resolution": None}
    given = defaults | dict(options) | without_effect
    for size in SIZES if options.get("upscale") in SCALES else ():
        if defaults | size_options(size, options["upscale"]) | without_effect == given:
            return size
    return None
