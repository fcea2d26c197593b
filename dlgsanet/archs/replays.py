"""Calls of a network on a GPU that repeat an input shape: captured as CUDA graphs, then replayed.

A replay takes almost no host time. That pays for small images: an NVIDIA H100 computes Tiny x4 of 320x180 in 9 ms, and
the host needs 15 ms to launch the kernels (docs/benchmarks/gpu.md).
"""

import functools
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dlgsanet.errors import brief, first_failure
from dlgsanet.ops import tf32
from dlgsanet.ops.backends.torch.frozen import is_frozen
from dlgsanet.ops.transforms import is_plain

LARGEST = 2**18  # pixels of a batch that is captured; with more, the GPU takes longer than the host
SHAPES = 8  # that a network keeps graphs of
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of a pixel, white being 1

Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger("dlgsanet")

_captures = threading.Lock()  # PyTorch allows one capture at a time in a process
_replays = threading.Lock()


def can_replay(network: nn.Module, x: Tensor) -> bool:
    """Whether `replay` may be used: the network is frozen, and `x` [B, C, H, W] is small and on an NVIDIA GPU."""
    return (
        is_plain()
        and _on_nvidia_gpu(x)
        and is_frozen(network)
        and x.dtype in TOLERANCE
        and 0 < x.shape[0] * x.shape[2:].numel() <= LARGEST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
        and not torch.cuda.is_current_stream_capturing()
    )


def replay(function: Callable[[Network, Tensor], Tensor], network: Network, x: Tensor) -> Tensor:
    """``function(network, x)``, which must depend on nothing else.

    The first call with a shape runs as usual. The second one is captured, and compared with a usual one. From the third
    one on it is replayed. If a call cannot be captured, or differs, a warning says so and all calls run as usual.
    """
    graphs = _graphs.setdefault(network, _Graphs())
    with graphs.lock:
        return graphs.call(function, network, x)


def _on_nvidia_gpu(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None


@functools.cache
def _stream_of_captures(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures on a device: graphs that share memory need it, and cuBLAS keeps memory for each.

    PyTorch's own one is on the device of the process's first capture.
    """
    return torch.cuda.Stream(device)


@functools.cache
def _last_replay(device: torch.device) -> torch.cuda.Event:
    """The end of the last replay on a device. The next one, perhaps on another stream, waits for it.

    Graphs of one network share their memory, and all graphs share what cuBLAS keeps for the stream of captures.
    """
    return torch.cuda.Event()


class _Graph:
    """A call with one shape. Its input, its result and all memory between them stay where they are."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, pool: Any):
        with torch.inference_mode(False):  # so that calls outside of inference mode may write to it
            self._x = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._graph = torch.cuda.CUDAGraph()
        options = {"pool": pool, "stream": _stream_of_captures(x.device), "capture_error_mode": "thread_local"}
        with _captures, torch.cuda.device(x.device), torch.cuda.graph(self._graph, **options):
            self._result = function(self._x)

    def __call__(self, x: Tensor) -> Tensor:
        stream, last = torch.cuda.current_stream(x.device), _last_replay(x.device)
        with _replays:
            last.wait(stream)
            try:
                self._x.copy_(x)
                self._graph.replay()
                return self._result.clone()
            finally:
                last.record(stream)


class _Graphs:
    """The graphs of one network; one call at a time uses them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._graphs: OrderedDict[Any, _Graph | None] = OrderedDict()  # None: there was one call
        self._weights: list[Any] = []
        self._pool: Any = None
        self._refused = False

    def call(self, function: Callable[[Network, Tensor], Tensor], network: Network, x: Tensor) -> Tensor:
        if self._refused:
            return function(network, x)
        weights = [(p.data_ptr(), p._version) for p in network.parameters()]
        if weights != self._weights:
            self._graphs.clear()
            self._weights = weights
        precision = x.dtype, tf32.allowed_in_convolutions(), tf32.allowed_in_matrix_products()
        key = (function, x.shape, x.device, precision, torch.are_deterministic_algorithms_enabled())
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            return graph(x)
        result = function(network, x)
        self._graphs[key] = self._captured(function, network, x, result) if key in self._graphs else None
        self._graphs.move_to_end(key)
        if len(self._graphs) > SHAPES:
            self._graphs.popitem(last=False)
        return result

    def _captured(
        self, function: Callable[[Network, Tensor], Tensor], network: Network, x: Tensor, expected: Tensor
    ) -> _Graph | None:
        if not any(self._graphs.values()):  # PyTorch does not share a pool again once all its graphs are freed
            self._pool = torch.cuda.graph_pool_handle()
        try:
            graph = _Graph(partial(function, network), x, self._pool)
            difference = (graph(x) - expected).abs().max().item()
            if difference <= TOLERANCE[x.dtype] or not math.isfinite(expected.abs().max().item()):
                return graph
            problem = f"a replay differs by {difference:.1e}"
        except RuntimeError as error:
            problem = brief(first_failure(error))
        logger.warning("%s: calls are not replayed as CUDA graphs: %s", x.device, problem)
        self._refused = True
        self._graphs.clear()
        return None


_graphs: WeakKeyDictionary[nn.Module, _Graphs] = WeakKeyDictionary()
