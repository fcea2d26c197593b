"""How commands start and end: standard streams, threads that do not spin, quick imports, a quick exit."""

import atexit
import codecs
import faulthandler
import gc
import importlib
import io
import os
import runpy
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# How PyTorch computes shapes while it traces a graph: a quarter of its import.
_FOR_TRACING = "torch._meta_registrations"


# How often an idle thread of libgomp looks for work before it sleeps: a fraction of a millisecond. By default it spins
# for several, and takes the core from the threads that compute as soon as the machine has other work.
_SPINS = "10000"


def spin_shortly() -> None:
    """Let idle threads sleep early, unless the environment says how they wait. Call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what needs it faster.

    Garbage collections are left out, since imported modules stay. The part of PyTorch that only tracing uses
    (torch.compile, export) is imported when it is used.
    """
    collects = gc.isenabled()
    gc.disable()
    deferred = None if "torch" in sys.modules else _defer(_FOR_TRACING)
    try:
        yield
    finally:
        if deferred and sys.modules.get(_FOR_TRACING) is deferred:
            del sys.modules[_FOR_TRACING]  # the next import is the real one
            sys.meta_path.insert(0, _BeforeTracing())
        gc.freeze()
        if collects:
            gc.enable()


class _BeforeTracing:
    """Import `_FOR_TRACING` before torch._dynamo, which relies on it, as `import torch` would have done."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch._dynamo" and self in sys.meta_path:
            sys.meta_path.remove(self)
            with suppress(ImportError):  # a later PyTorch may not have it
                importlib.import_module(_FOR_TRACING)


def _defer(name: str) -> types.ModuleType:
    """Put an empty module in place of `name`. The first access to anything in it imports the real one."""
    placeholder = types.ModuleType(name)

    def real_attribute(attribute: str) -> object:
        if attribute.startswith("__"):  # the import system's own questions
            raise AttributeError(attribute)
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    placeholder.__getattr__ = real_attribute  # type: ignore[method-assign]
    sys.modules[name] = placeholder
    return placeholder


def prepare_standard_streams() -> None:
    """Open those that the caller has closed, let every name of a file be printed, and let no crash be silent.

    The next file to be opened would take the place of a closed stream, and get its messages. Some programs leave
    streams that do not block: input that has not come yet would be missing, and output that does not fit lost.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if not os.get_blocking(number):
            os.set_blocking(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # open until the process ends
    codecs.register_error("dlgsanet", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dlgsanet")
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # a process that a fault ends, such as an invalid address, says where it was


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that a stream cannot print as escapes: ``\\xe9`` for a byte of a file name that is not UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escapes = [
        f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace").decode()
        for c in error.object[error.start : error.end]
    ]
    return "".join(escapes), error.end


def run_command(argv: Sequence[str]) -> None:
    """Be the process of ``dlgsanet ARGV``."""
    sys.argv = ["dlgsanet", *argv]
    runpy.run_module("dlgsanet", run_name="__main__")


def leave(code: int) -> None:
    """End the process as `sys.exit` does, without freeing what the system frees faster."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # closed, or the disk is full
        code = code or 120  # as Python itself
    os._exit(code)
