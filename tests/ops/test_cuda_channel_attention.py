"""The CUDA kernels of channel attention without a GPU: in the emulator against float64."""
import pytest
import torch
from torch import Tensor
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends.cuda import channel_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import map_tensors
from tests.ops import calls
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule
from tests.ops.test_cuda_kernels import TOLERANCE, relative_error

def test_try(monkeypatch):
    monkeypatch.setattr(cuda_modules, "load", lambda i, device: EmulatedModule(i, "ascending"))
    for size, heads, share, window in [((1, 9, 17), 2, 8, None), ((2, 20, 21), 3, 5, 9), ((1, 27, 20), 4, 9, 12)]:
        for dtype in (torch.float16, torch.bfloat16):
            call = calls.channel_attention(size, heads, share, "relu", window, seed=1).map(lambda t: t.to(dtype))
            with torch.no_grad():
                out = channel_attention.channel_attention(call.record, call.x)
                expected = reference.BACKEND.infer(map_tensors(call.record, Tensor.double), call.x.double())
            print(size, heads, share, window, dtype, relative_error((out,), (expected,)), (out.double()-expected).norm()/(expected - call.x.double()).norm())
