"""Compiled layers for CPUs in float32: C++ in this folder, called with ctypes on the memory of tensors.

Each layer runs in tiles whose intermediate features stay in the processor's cache. There is one library per instruction
set. The one for the instruction set that PyTorch itself uses is loaded (PyTorch's variable ``ATEN_CPU_CAPABILITY`` sets
both). The threads are PyTorch's, as many as `torch.get_num_threads`. Results do not depend on their number.
"""

import torch
from torch import Tensor

from dlgsanet.ops.backends import Backend, LayerFunctions
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.native import differentiable, dynamic_conv, layers, library
from dlgsanet.ops.records import Record, tensors_of


def unsuited(record: Record, x: Tensor, training: bool) -> str | None:
    if not x.is_cpu:
        return f"the tensors are on {x.device.type}"
    if any(t.is_cpu and t.dtype != torch.float32 for t in (x, *tensors_of(record))):
        return "it computes in float32 only"
    if reason := strips.unsuited(record, x, training):
        return reason
    return library.problem()


BACKEND = Backend(
    name="native",
    unsuited=unsuited,
    dynamic_local_attention=LayerFunctions(layers.dynamic_local_attention, differentiable.dynamic_local_attention),
    channel_attention=LayerFunctions(layers.channel_attention, differentiable.channel_attention),
    gated_feed_forward=LayerFunctions(layers.gated_feed_forward, differentiable.gated_feed_forward),
    convolution=LayerFunctions(layers.convolution, differentiable.convolution),
    add_convolution=layers.add_convolution,
    fused_dynamic_depthwise_conv=dynamic_conv.FUSED_CONVOLUTION,
    feature_maps=3.2,  # measured 3.1
    bounds_memory=True,
)
