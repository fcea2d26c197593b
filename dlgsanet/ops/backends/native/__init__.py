"""Compiled layers for CPUs, float32: the C++ sources beside this file, called by ctypes on tensors' memory.

Each layer runs in tiles whose intermediate features stay in the processor's cache. There is one library for each
instruction set, so that an AVX-512 machine and an old one get code, and tiles, of their own; which one serves is what
PyTorch itself uses here (its variable ``ATEN_CPU_CAPABILITY`` holds for both). The threads are PyTorch's, as many as
`torch.get_num_threads`; results do not depend on how many.
"""

import torch
from torch import Tensor

from dlgsanet.ops.backends.native.differentiable import (
    differentiable_channel_attention,
    differentiable_dynamic_local_attention,
    differentiable_gated_feed_forward,
)
from dlgsanet.ops.backends.native.dynamic_conv import (
    fused_dynamic_depthwise_conv,
    fused_dynamic_depthwise_conv_backward,
)
from dlgsanet.ops.backends.native.layers import channel_attention, dynamic_local_attention, gated_feed_forward
from dlgsanet.ops.backends.native.library import library_path

__all__ = [
    "channel_attention",
    "differentiable_channel_attention",
    "differentiable_dynamic_local_attention",
    "differentiable_gated_feed_forward",
    "dynamic_local_attention",
    "fused_dynamic_depthwise_conv",
    "fused_dynamic_depthwise_conv_backward",
    "gated_feed_forward",
    "why_not",
]


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
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtypes"
    if operation == "differentiable_channel_attention" and args[-1] is not None:
        return "gradients through windows are not what training asks for"
    if not library_path().exists():
        return "its library is not built (python dlgsanet/ops/backends/native/build.py, with a C++ compiler)"
    return None
