"""CUDA graphs on the CPU: a tape of the operators that PyTorch calls, with their tensors and their Python numbers.

As on a GPU,

- a capture changes nothing, and the tensors that it makes hold garbage (NaN) until the first replay;
- a replay runs the same operators on the same memory, with the numbers of the capture;
- reading a value within a capture is an error, after which the end of the capture raises another one;
- graphs may share memory, a pool, as long as one of them exists: a pool without graphs cannot be used again.

Kernels that are called by address, as those of the native backend, are not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Reading a value, and a tensor from Python numbers, which a GPU copies from memory that is not page-locked.
aten = torch.ops.aten
NOT_CAPTURED = (aten._local_scalar_dense.default, aten.item.default, aten.lift_fresh.default)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape:
    """What a graph has recorded. Tests keep it; that does not keep the graph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    def replay(self) -> None:
        assert self.calls, "it was not captured"
        self.replays += 1
        with torch.inference_mode():
            for function, args, kwargs, outputs in self.calls:
                given = {_address(tensor) for tensor in _tensors((args, kwargs))}
                for kept, new in zip(outputs, _tensors(function(*args, **kwargs)), strict=True):
                    if _address(kept) not in given:  # neither a view nor changed in place
                        kept.copy_(new)


class _Pool:
    def __init__(self) -> None:
        self.graphs: WeakSet[_Graph] = WeakSet()
        self.used = False

    def add(self, graph: "_Graph") -> None:
        if self.used and not self.graphs:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")  # as PyTorch's allocator says
        self.graphs.add(graph)
        self.used = True


class _Graph:
    """As `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.tape, self._pool = Tape(), _Pool()

    def share(self, pool: _Pool) -> None:
        self._pool = pool

    def pool(self) -> _Pool:
        return self._pool

    def replay(self) -> None:
        self.tape.replay()


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape):
        super().__init__()
        self.tape = tape
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        if function in NOT_CAPTURED:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in self._changed(function, args, kwargs):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = function(*args, **kwargs)
        outputs = _tensors(result)
        self.made += [tensor for tensor in outputs if _address(tensor) not in given]
        self.tape.calls.append((function, args, kwargs, outputs))
        return result

    @staticmethod
    def _changed(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
        schema = function._schema.arguments
        values = {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        writes = [a.name for a in schema if a.alias_info and a.alias_info.is_write]
        return [tensor for name in writes for tensor in _tensors(values.get(name))]

    def undo(self) -> None:
        """The capture has not happened."""
        for storage, before in self.before.values():
            storage.copy_(before)
        with torch.no_grad():
            for tensor in self.made:
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)


@contextmanager
def _captured(graph: _Graph, pool: _Pool | None = None, **_: Any) -> Iterator[None]:
    if pool is not None:
        graph.share(pool)
    graph.pool().add(graph)
    recorder = _Recorder(graph.tape)
    try:
        with recorder:
            yield
    except RuntimeError:
        raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904  # as PyTorch does
    finally:
        recorder.undo()


class _Stream:
    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, other: "_Stream") -> None:
        assert isinstance(other, _Stream)


class Event:
    """As `torch.cuda.Event`; `calls` are those of all events, with their streams."""

    calls: ClassVar[list[tuple[str, Any]]] = []

    def wait(self, stream: _Stream) -> None:
        self.calls.append(("wait", stream))

    def record(self, stream: _Stream) -> None:
        self.calls.append(("record", stream))


_DEFAULT_STREAM = _Stream()


@contextmanager
def graphs_on_the_cpu() -> Iterator[list[Tape]]:
    """`torch.cuda` captures and replays what the CPU computes; the graphs that are made."""
    tapes: list[Tape] = []

    def make() -> _Graph:
        graph = _Graph()
        tapes.append(graph.tape)
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", make)
        patch.setattr(torch.cuda, "graph", _captured)
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: _DEFAULT_STREAM)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "graph_pool_handle", _Pool)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        yield tapes
