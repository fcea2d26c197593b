"""Memory: out-of-memory errors of every library, free memory under every limit, and returning cached memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from dlgsanet.device import GPUS

# Processes on this machine that do the same work at the same time, and share its memory. torchrun sets it.
PROCESSES = "LOCAL_WORLD_SIZE"
UNLIMITED = 2**60  # control groups of version 1 write "no limit" as a number near 2^63


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. PyTorch, oneDNN, CuPy and Python say so in different ways."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    phrases = (
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "bad_alloc",
        "out of memory",
        "alloc_failed",  # cuDNN and cuBLAS
        "could not create a primitive",  # oneDNN
        "could not create a memory",  # oneDNN
    )
    return isinstance(error, (RuntimeError, OSError)) and any(phrase in str(error).lower() for phrase in phrases)


def release_cached_memory(device: torch.device) -> None:
    """Give the memory that PyTorch keeps for later back to the device."""
    if device.type in GPUS:
        getattr(torch, device.type).empty_cache()


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can allocate on a device now; None if unknown.

    On a CPU it is the share of this process, if several do the same work (`PROCESSES`).
    """
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        free, _ = module.mem_get_info(device)
        return free + module.memory_reserved(device) - module.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    processes = max(1, int(os.environ.get(PROCESSES, 1)))
    shared = [free // processes for free in (_free_on_machine(), *_free_in_control_groups()) if free is not None]
    own = _free_in_address_space()
    return min(shared if own is None else [*shared, own], default=None)


def _free_on_machine() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _free_in_control_groups(process: Path = Path("/proc/self")) -> Iterator[int]:
    """What is left below each memory limit of the process's control group and its parents, versions 1 and 2."""
    for group, mount_point in _control_groups(process):
        while True:
            yield from _free_in_group(group)
            if group == mount_point or mount_point not in group.parents:
                break
            group = group.parent


def _control_groups(process: Path) -> Iterator[tuple[Path, Path]]:
    """Folder of the process's memory control group, and the folder where its hierarchy is mounted."""
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = {}  # version -> path of the group within its hierarchy
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    for line in mounts:
        fields, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        version = {"cgroup2": 2, "cgroup": 1}.get(kind)
        if version not in paths or (version == 1 and "memory" not in options.split()[-1].split(",")):
            continue
        root, mount_point = fields.split()[3:5]
        mounted = Path(mount_point.encode().decode("unicode_escape"))  # mountinfo writes a space as \040
        group = mounted
        # In a container the mounted part of the hierarchy may begin at the group itself, or below it.
        with suppress(ValueError):
            group = mounted / Path(paths[version]).relative_to(root)
        yield group if group.is_dir() else mounted, mounted


def _free_in_group(group: Path) -> Iterator[int]:
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.high", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # a group without limit says "max"
            most = int((group / limit).read_text())
            if most < UNLIMITED:
                used = int((group / usage).read_text()) - _statistic(group / "memory.stat", cache)
                yield max(0, most - used)


def _statistic(file: Path, name: str) -> int:
    """A line of memory.stat; 0 if it is missing."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0


def _free_in_address_space() -> int | None:
    """What ``ulimit -v`` leaves."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError):
        if most != resource.RLIM_INFINITY:
            return max(0, most - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return None
