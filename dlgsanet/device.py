"""Devices: found by name, how much memory is free on them, and which errors say that it ran out."""

from contextlib import suppress
from pathlib import Path

import torch

from dlgsanet.errors import UserError

_UNLIMITED = 2**60  # cgroup v1 writes "no limit" as a number near 2^63


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of this name that works here; None: the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    # What PyTorch raises differs from device to device: RuntimeError, AssertionError, NotImplementedError.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--device: cannot use {str(device)!r}: {reason}") from None
    if found.type == "meta":
        raise UserError("--device: 'meta' computes nothing; use cpu or cuda")
    return found


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device now; None where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free_here = [amount for amount in (_free_on_machine(), _free_in_group()) if amount is not None]
    return min(free_here, default=None)


def _free_on_machine() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _free_in_group() -> int | None:
    """What the control group (of a container or a slurm job) leaves, versions 2 and 1."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # a group without limit says "max"
            most = int(limit.read_text())
            if most < _UNLIMITED:
                return max(0, most - int(used.read_text()))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: PyTorch, CuPy and Python each have their own way to say so."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
