"""glibc's allocator, kept from giving memory back to the system after every layer.

By default glibc maps large blocks anew and unmaps them when they are freed; the next layer's blocks are then fresh
pages that the system must clear and map one by one, up to half of the time of a network on a CPU. See docs/cpu.md.
"""

import ctypes
import os

from dlgsanet.errors import UserError

VARIABLE = "DLGSANET_ALLOCATOR"
# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have freed blocks stay with the process, to be used again. Commands call this before they compute.

    Harmless where the C library is not glibc; ``DLGSANET_ALLOCATOR=stock`` turns it off.

    Returns:
        Whether the allocator is now set so.

    Raises:
        UserError: the variable holds another word.
    """
    wish = os.environ.get(VARIABLE, "tuned")
    if wish not in ("stock", "tuned"):
        raise UserError(f"{VARIABLE} is {wish!r}; it must be stock or tuned")
    return wish == "tuned" and _has_glibc() and _set(M_MMAP_MAX, 0) and _set(M_TRIM_THRESHOLD, 2**31 - 1)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no such function, name or value
        return False


def _set(parameter: int, value: int) -> bool:
    return ctypes.CDLL(None).mallopt(parameter, value) == 1
