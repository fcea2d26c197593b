"""Compiled layers for CPUs, float32: the C++ sources beside this file, called by ctypes on tensors' memory.

Each layer runs in tiles whose intermediate features stay in the processor's cache. There is one library for each
instruction set, so that an AVX-512 machine and an old one get code, and tiles, of their own; which one serves is what
PyTorch itself uses here (its variable ``ATEN_CPU_CAPABILITY`` holds for both). The threads are PyTorch's, as many as
`torch.get_num_threads`; results do not depend on how many.
"""

import ctypes
import functools
import itertools
import os
from pathlib import Path

import torch
from torch import Tensor

from dlgsanet.ops import reference
from dlgsanet.ops.native.build import instruction_sets, library_name
from dlgsanet.ops.tlc import window_starts

# OpenMP's threads do not outlive a fork: a child of this process works alone (torch says the same to its DataLoader's).
_forked = False


def _work_alone() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)


def instruction_set() -> str:
    """The instruction set whose library serves this process: what PyTorch's own kernels use."""
    here = torch.backends.cpu.get_cpu_capability().lower()
    return here if here in instruction_sets() else "portable"


@functools.cache
def _load(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(_path(name)))


def _path(name: str) -> Path:
    return Path(__file__).with_name(library_name(name))


def why_not(operation: str, *args) -> str | None:
    tensors = [a for a in args if isinstance(a, Tensor)]
    devices = {t.device.type for t in tensors}
    if devices != {"cpu"}:
        return f"the tensors are on {', '.join(sorted(devices))}"
    if any(t.dtype != torch.float32 for t in tensors):
        return "it computes in float32 alone"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return "the tensors are not plain ones"
    if tensors[0].numel() == 0:
        return "the tensors are empty"
    if not _path(instruction_set()).exists():
        return "its library is not built (python dlgsanet/ops/native/build.py, with a C++ compiler)"
    return None


def _call(function: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Call ``dlgsanet_<function>(tensors' memory..., sizes..., threads)``."""
    entry = getattr(_load(instruction_set()), f"dlgsanet_{function}")
    entry.restype = ctypes.c_bool
    threads = 1 if _forked else torch.get_num_threads()
    memory = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    if not entry(*memory, *map(ctypes.c_ssize_t, sizes), ctypes.c_int(threads)):
        raise MemoryError(f"not enough memory for {function}")


def fused_dynamic_depthwise_conv(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    x, z, weight, bias = _prepare(x, z, weight, bias)
    out = torch.empty_like(x)
    _call("fused_dynamic_depthwise_conv", (x, z, weight, bias, out), _sizes(x, z, weight, window_size))
    return out


def fused_dynamic_depthwise_conv_backward(
    grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, z, weight, bias = _prepare(x, z, weight, bias)
    grad = grad.contiguous()
    sizes = _sizes(x, z, weight, window_size)
    batch, _, inputs, groups, _, height, _ = sizes
    measure = _load(instruction_set()).dlgsanet_fused_dynamic_depthwise_conv_backward_work
    measure.restype = ctypes.c_ssize_t
    work = torch.zeros(measure(*map(ctypes.c_ssize_t, (batch, inputs, groups, window_size, height))))
    transposed = weight.view(groups, -1, inputs).transpose(1, 2).contiguous()
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(z)
    grad_weight_bias = torch.empty(weight.shape[0], inputs + 1)
    tensors = (grad, x, z, weight, bias, transposed, grad_x, grad_z, grad_weight_bias, work)
    _call("fused_dynamic_depthwise_conv_backward", tensors, sizes)
    grad_weight, grad_bias = grad_weight_bias.split([inputs, 1], 1)
    return grad_x, grad_z, grad_weight.contiguous(), grad_bias.flatten()


def _prepare(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return x.contiguous(), z.contiguous(), weight.contiguous(), bias.contiguous()


def _sizes(x: Tensor, z: Tensor, weight: Tensor, window_size: int) -> tuple[int, ...]:
    """B, C, D, G, K, H, W."""
    return (*x.shape[:2], z.shape[1], weight.shape[0] // window_size**2, window_size, *x.shape[2:])


def gated_feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, proj_in: Tensor, depthwise: Tensor, proj_out: Tensor
) -> Tensor:
    weights = (norm_weight, norm_bias, proj_in, depthwise, proj_out)
    x, *rest = (t.contiguous() for t in (x, *weights))
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    _call("gated_feed_forward", (x, *rest, out), (batch, channels, proj_out.shape[1], height, width))
    return out


def dynamic_local_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    proj_in: Tensor,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    filter_weight: Tensor,
    filter_bias: Tensor,
    proj_out: Tensor,
    window_size: int,
) -> Tensor:
    weights = (
        norm_weight, norm_bias, proj_in, squeeze_weight, squeeze_bias,
        spatial_weight, spatial_bias, filter_weight, filter_bias, proj_out,
    )  # fmt: skip
    x, *rest = (t.contiguous() for t in (x, *weights))
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    groups = filter_weight.shape[0] // window_size**2
    sizes = (batch, channels, squeeze_weight.shape[0], groups, window_size, height, width)
    _call("dynamic_local_attention", (x, *rest, out), sizes)
    return out


TILE_FLOATS = 100 * 1024  # of scratch memory a thread, so that it stays in the second-level cache
BAND = 16  # rows whose products of q and k are summed up first, whatever the threads


@functools.lru_cache(maxsize=64)
def _pieces(size: int, window: int, multiple: int) -> Tensor:
    """[pieces, 4]: first pixel, last + 1, first window, last window of the pieces that an axis falls into.

    Windows begin and end between pieces, and no piece crosses a multiple of `multiple`.
    """
    window = min(size, window)
    starts = window_starts(size, window)
    edges = sorted({0, size, *starts, *(s + window for s in starts), *range(0, size, multiple)})
    pieces = []
    for start, stop in itertools.pairwise(edges):
        covering = [n for n, s in enumerate(starts) if s <= start < s + window]
        pieces.append((start, stop, covering[0], covering[-1]))
    return torch.tensor(pieces, dtype=torch.int64)


def channel_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
    proj_out: Tensor,
    activation: str,
    topk_ratio: float,
    window: int | None,
) -> Tensor:
    weights = (norm_weight, norm_bias, qkv_weight, depthwise, proj_out)
    x, norm_weight, norm_bias, qkv_weight, depthwise, proj_out = (t.contiguous() for t in (x, *weights))
    batch, channels, height, width = x.shape
    heads, window = len(temperature), window or max(height, width)
    tile_width = max(64, TILE_FLOATS // (22 * channels) // 16 * 16)
    bands, columns = _pieces(height, window, BAND), _pieces(width, window, tile_width)
    sizes = (batch, channels, heads, height, width, len(bands), len(columns))

    c = channels // heads
    sums = channels * c + 2 * channels
    windows = [int(pieces[-1, 3]) + 1 for pieces in (bands, columns)]
    v, piece_sums = torch.empty_like(x), torch.empty(batch, len(bands), len(columns), sums)
    window_sums = torch.empty(batch, *windows, sums)
    _call(
        "channel_attention_sums",
        (x, norm_weight, norm_bias, qkv_weight, depthwise, bands, columns, v, piece_sums, window_sums),
        (*sizes, tile_width),
    )
    products, squares = window_sums.split([channels * c, 2 * channels], -1)
    norms = squares.sqrt().clamp_min(1e-12).unflatten(-1, (2, heads, c))
    norm_q, norm_k = norms.unbind(-3)
    similarities = products.unflatten(-1, (heads, c, c)) / (norm_q.unsqueeze(-1) * norm_k.unsqueeze(-2)) * temperature
    attention = reference.select_similarities(similarities, activation, topk_ratio).contiguous()
    out = torch.empty_like(x)
    _call("channel_attention_apply", (x, v, attention, proj_out, bands, columns, out), sizes)
    return out
