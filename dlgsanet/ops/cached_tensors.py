"""A cache of tensors that depend on sizes, not on images, and that CUDA graphs may read."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def cached_tensors(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`functools.lru_cache` for functions that make tensors.

    What is used while a CUDA graph is captured is kept for good: replays read it at its address, also when calls with
    other arguments have filled the cache.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        cached = functools.lru_cache(maxsize)(function)
        read_by_graphs: dict[tuple[Any, ...], Any] = {}

        @functools.wraps(function)
        def get(*arguments: Any) -> Any:
            if arguments in read_by_graphs:
                return read_by_graphs[arguments]
            found = cached(*arguments)
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                read_by_graphs[arguments] = found
            return found

        return get

    return decorate
