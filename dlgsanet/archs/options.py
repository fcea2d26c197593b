"""The values that the `network_g` options of a DLGSANet may have, and which of them exclude each other."""

from collections.abc import Iterator, Mapping
from typing import Any

from dlgsanet.archs.feed_forward import FEED_FORWARDS
from dlgsanet.archs.reconstruction import UPSAMPLERS
from dlgsanet.archs.sparse_gsa import ACTIVATIONS
from dlgsanet.errors import is_whole, unknown

BLOCK_TYPES = ("sparseedge", "edge", "idynamic", "restormer")

CHOICES = {
    "buildblock_type": BLOCK_TYPES,
    "idynamic_ffn_type": tuple(FEED_FORWARDS),
    "restormer_ffn_type": tuple(FEED_FORWARDS),
    "activation": ACTIVATIONS,
    "upsampler": UPSAMPLERS,
}
# The largest value of each count, far above all published networks. A typing error would otherwise fill the memory.
_COUNTS = {
    "in_chans": 1024, "dim": 4096, "groups": 100, "blocks": 100, "window_size": 99, "idynamic_num_heads": 4096,
    "restormer_num_heads": 4096, "tlc_kernel": 65536, "upscale": 64,
}  # fmt: skip
_POSITIVE = ("idynamic_ffn_expansion_factor", "restormer_ffn_expansion_factor", "img_range")
_SWITCHES = ("idynamic", "tlc_flag", "body_norm")


def check_network_options(options: Mapping[str, Any]) -> list[str]:
    """All errors in the options, one line each. `options` must have every argument of `DLGSANet`."""
    problems = []
    for name, words in CHOICES.items():
        if options[name] not in words:
            problems.append(f"{name}: {unknown(name, options[name], words)}")
    for name, largest in _COUNTS.items():
        if not is_whole(options[name], 1) or options[name] > largest:
            problems.append(f"{name} is {options[name]!r}; it must be a whole number from 1 to {largest}")
    for name in _POSITIVE:
        if not _is_number(options[name]) or not 0 < options[name] <= 1000:
            problems.append(f"{name} is {options[name]!r}; it must be a number above 0 and at most 1000")
    for name in _SWITCHES:
        if not isinstance(options[name], bool):
            problems.append(f"{name} is {options[name]!r}; it must be true or false")
    return problems or [*_check_fit(options)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_fit(options: Mapping[str, Any]) -> Iterator[str]:
    """Errors in combinations of options that are valid separately."""
    dim, upscale = options["dim"], options["upscale"]
    for name in ("idynamic_num_heads", "restormer_num_heads"):
        if dim % options[name]:
            yield f"dim is {dim}; it must be a multiple of {name}, which is {options[name]}"
    if dim < 4:
        yield f"dim is {dim}; it must be at least 4"
    if options["window_size"] % 2 == 0:
        yield f"window_size is {options['window_size']}; it must be odd"
    for name in ("idynamic_ffn_expansion_factor", "restormer_ffn_expansion_factor"):
        if dim * options[name] < 1:
            yield f"{name} is {options[name]}; with dim {dim} there is no hidden channel"
    if options["upsampler"] == "" and upscale != 1:
        yield f"upsampler is '' (no change of size) but upscale is {upscale}; set upsampler, or upscale: 1"
    if options["upsampler"] == "pixelshuffle" and upscale != 3 and (upscale < 2 or upscale & (upscale - 1)):
        yield f"upscale is {upscale}; the upsampler 'pixelshuffle' takes 3 or a power of two"
    ratio = options["topk_ratio"]
    if ratio is not None:
        if options["activation"] != "topk":
            yield f"topk_ratio is given, but activation is {options['activation']!r}; only 'topk' uses it"
        if not _is_number(ratio) or not 0 < ratio <= 1:
            yield f"topk_ratio is {ratio!r}; it must be a number above 0 and at most 1"
