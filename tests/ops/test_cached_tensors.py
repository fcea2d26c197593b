"""Tensors that a CUDA graph reads outlive their place in a cache."""

import weakref

import torch

from dlgsanet.ops.cached_tensors import cached_tensors


def test_what_a_captured_graph_reads_is_kept(monkeypatch):
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)

    @cached_tensors(maxsize=2)
    def full(value: float) -> torch.Tensor:
        return torch.full((2,), value)

    other, read = weakref.ref(full(0.0)), weakref.ref(full(1.0))
    assert full(0.0) is other()
    capturing = True
    full(1.0)
    capturing = False
    for value in range(2, 6):
        full(float(value))
    assert other() is None
    assert full(1.0) is read()
