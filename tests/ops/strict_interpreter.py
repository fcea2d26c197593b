"""Triton's interpreter, with a rule of NVIDIA's compiler that it does not know."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def strict_interpreter() -> Iterator[None]:
    """Within the block a product of fewer than 16 terms is an error, as when a kernel is compiled for a GPU."""
    from triton.runtime.interpreter import interpreter_builder

    with mock.patch.dict(interpreter_builder.codegen_fns, min_dot_size=lambda *types: (1, 1, 16)):
        yield
