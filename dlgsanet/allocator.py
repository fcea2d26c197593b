"""Keep glibc's allocator from returning memory to the system after every layer.

By default glibc maps each large block and unmaps it when it is freed. The next blocks are then new pages, which the
system clears and maps one by one: a tenth of the time of a training step with large batches. Inference keeps its
memory without it (`dlgsanet.ops.kept_memory`). See docs/cpu.md.
"""

import ctypes
import os

from dlgsanet.errors import UserError, unknown

VARIABLE = "DLGSANET_ALLOCATOR"
SETTINGS = ("stock", "tuned")
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed blocks in the process, to be used again. `dlgsanet train` calls this before it computes.

    Does nothing if the C library is not glibc, or with ``DLGSANET_ALLOCATOR=stock``.

    Returns:
        Whether freed blocks are kept now.

    Raises:
        UserError: the variable has another value.
    """
    wish = os.environ.get(VARIABLE, "tuned")
    if wish not in SETTINGS:
        raise UserError(unknown(VARIABLE, wish, SETTINGS))
    return wish == "tuned" and _has_glibc() and _set(M_MMAP_MAX, 0) and _set(M_TRIM_THRESHOLD, 2**31 - 1)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no such function, name or value
        return False


def _set(parameter: int, value: int) -> bool:
    return ctypes.CDLL(None).mallopt(parameter, value) == 1
