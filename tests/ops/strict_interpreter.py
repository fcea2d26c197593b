"""Triton's interpreter, with a rule of NVIDIA's compiler that it does not know."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock


@contextmanager
def strict_interpreter() -> Iterator[None]:
    """Within the block a product of fewer than 16 terms is an error, as when a kernel is compiled for a GPU.

    It takes half of the time: the language is made interpretable once, not again in every call of a function, and sums
    of integers are not formed a second time in 64 bits (indices of small images do not overflow).
    """
    from triton import language
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    patched = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    try:
        with (
            mock.patch.dict(builder.codegen_fns, min_dot_size=lambda *types: (1, 1, 16)),
            mock.patch.object(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False)),
            mock.patch.object(interpreter, "_patch_lang", return_value=interpreter._LangPatchScope()),
        ):
            yield
    finally:
        patched.restore()
