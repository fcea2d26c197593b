"""The compiled libraries and how they are called: by ctypes, with arguments that are checked by name and type."""

import ctypes
import functools
import operator
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops.backends.native.build import CONSTANTS, instruction_sets, library_name

# The functions' arguments, as the C++ sources declare them: tensors, then sizes, in their order.
_NORMED = "x norm_weight norm_bias"
_IMAGE = "height width"
_BACKWARD = "grad_x parts"
SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    name: (tuple(tensors.split()), tuple(sizes.split()))
    for name, (tensors, sizes) in {
        "gated_feed_forward": (
            f"{_NORMED} proj_in depthwise proj_out out",
            f"batch channels half {_IMAGE}",
        ),
        "gated_feed_forward_backward": (
            f"grad {_NORMED} proj depthwise proj_transposed depthwise_flipped proj_out_transposed {_BACKWARD}",
            f"batch channels half {_IMAGE}",
        ),
        "dynamic_local_attention": (
            f"{_NORMED} proj_in squeeze_weight squeeze_bias spatial_weight spatial_bias filter_weight filter_bias "
            "proj_out out",
            f"batch channels squeezed groups window_size {_IMAGE}",
        ),
        "local_features": (
            f"{_NORMED} proj_in squeeze_weight squeeze_bias spatial_weight spatial_bias y z",
            f"batch channels squeezed window_size {_IMAGE}",
        ),
        "local_features_backward": (
            f"grad grad_y grad_z {_NORMED} proj_in squeeze_weight squeeze_bias proj_in_transposed squeeze_transposed "
            f"spatial_flipped y {_BACKWARD}",
            f"batch channels squeezed window_size {_IMAGE}",
        ),
        "fused_dynamic_depthwise_conv": (
            "x z weight bias out",
            f"batch channels inputs groups window_size {_IMAGE}",
        ),
        "fused_dynamic_depthwise_conv_backward": (
            "grad x z weight bias weight_transposed grad_x grad_z parts",
            f"batch channels inputs groups window_size {_IMAGE}",
        ),
        "channel_attention_sums": (
            f"{_NORMED} qkv_weight depthwise band_pieces column_pieces v piece_sums window_sums",
            f"batch channels head_count {_IMAGE} band_count column_count tile_width",
        ),
        "channel_attention_apply": (
            "x v weights proj_out band_pieces column_pieces out",
            f"batch channels head_count {_IMAGE} band_count column_count",
        ),
        "products": (
            "a b parts",
            f"batch a_channels a_first b_channels b_first blocks rows columns {_IMAGE}",
        ),
        "projected_depthwise": (
            f"{_NORMED} proj depthwise out",
            f"batch channels hidden {_IMAGE}",
        ),
        "channel_attention_backward": (
            f"grad {_NORMED} proj depthwise proj_transposed depthwise_flipped qkv of_similarities mixing_transposed "
            f"{_BACKWARD}",
            f"batch channels heads {_IMAGE}",
        ),
    }.items()
}
_INTEGERS = frozenset({"band_pieces", "column_pieces"})  # int64; all other tensors are float32

# OpenMP's threads do not survive a fork: a forked process computes with one thread, as torch does in its DataLoader's.
_forked = False


def _compute_alone() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)


def instruction_set() -> str:
    """The instruction set of the library that serves this process: what PyTorch's own kernels use."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    return here if here in instruction_sets() else "portable"


def library_path() -> Path:
    return Path(__file__).with_name(library_name(instruction_set()))


@functools.cache
def _entry(path: Path, function: str) -> Any:
    entry = getattr(ctypes.CDLL(str(path)), f"dlgsanet_{function}")
    tensors, sizes = SIGNATURES[function]
    entry.argtypes = [ctypes.c_void_p] * len(tensors) + [ctypes.c_ssize_t] * len(sizes) + [ctypes.c_int]
    entry.restype = ctypes.c_bool
    return entry


def call(function: str, **arguments: Tensor | int) -> None:
    """Call ``dlgsanet_<function>`` with the arguments of `SIGNATURES`.

    Args:
        function: a key of `SIGNATURES`.
        arguments: all of its tensors, contiguous and on the CPU, and all of its sizes, by name.

    Raises:
        TypeError: an argument is missing, unknown or of the wrong type, dtype, device or layout.
        MemoryError: there was not enough for the threads' scratch.
    """
    tensors, sizes = SIGNATURES[function]
    if wrong := arguments.keys() ^ {*tensors, *sizes}:
        raise TypeError(f"{function}: missing or unknown arguments: {', '.join(sorted(wrong))}")
    memory = [_address(function, name, arguments[name]) for name in tensors]
    numbers = [_number(function, name, arguments[name]) for name in sizes]
    threads = 1 if _forked else torch.get_num_threads()
    if not _entry(library_path(), function)(*memory, *numbers, threads):
        raise MemoryError(f"not enough memory for {function}")


def _address(function: str, name: str, tensor: Tensor | int) -> int:
    dtype = torch.int64 if name in _INTEGERS else torch.float32
    if isinstance(tensor, Tensor) and tensor.is_cpu and tensor.dtype == dtype and tensor.is_contiguous():
        return tensor.data_ptr()
    found = type(tensor).__name__
    if isinstance(tensor, Tensor):
        layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
        found = f"{tensor.dtype} on {tensor.device}, {layout}"
    raise TypeError(f"{function}: {name} must be a contiguous tensor of {dtype} on the CPU, not {found}")


def _number(function: str, name: str, number: Tensor | int) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{function}: {name} must be a whole number, not {type(number).__name__}") from None


def round_up(count: int) -> int:
    """Columns of a matrix that the libraries add up in, for `count` that are used."""
    return -(-count // CONSTANTS["COLUMN_STEP"]) * CONSTANTS["COLUMN_STEP"]


def strips(batch: int, height: int) -> int:
    """How many parts of a sum over images the libraries keep apart (`Strips` in partial_sums.h)."""
    return batch * -(-height // CONSTANTS["STRIP_ROWS"])
