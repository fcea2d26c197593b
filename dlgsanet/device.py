"""Devices: find one by name, and describe it for tables of measurements."""

from collections.abc import Iterator

import torch

from dlgsanet.errors import ArgumentError, counted, first_line, unknown

GPUS = ("cuda", "xpu", "mps")  # device types in the order of preference


def find_device(device: str | torch.device | None = None, argument: str = "device") -> torch.device:
    """The device of this name.

    Args:
        device: as PyTorch names it; None: the first GPU if there is one, else the CPU.
        argument: its name in error messages.

    Raises:
        ArgumentError: there is no such device, or it cannot compute.
    """
    if device is None:
        return torch.device(next((name for name in GPUS if _is_available(name)), "cpu"))
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ArgumentError(argument, unknown("device", str(device), ("cpu", *GPUS))) from None
    try:
        torch.empty(1, device=found)
    # The type of the exception differs between devices: RuntimeError, AssertionError, NotImplementedError.
    except Exception as error:
        raise ArgumentError(argument, f"cannot use {str(device)!r}: {first_line(error)}") from None
    if found.type == "meta":
        raise ArgumentError(argument, "'meta' does not compute; use cpu or cuda")
    return found


def _is_available(name: str) -> bool:
    module = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    return module is not None and module.is_available()


def accelerators() -> Iterator[torch.device]:
    """All GPUs that PyTorch can use here, of any make, in the order of preference."""
    for name in GPUS:
        if _is_available(name):
            count = 1 if name == "mps" else getattr(torch, name).device_count()
            yield from (torch.device(name, index) for index in range(count))


def preferred_gpus() -> list[torch.device]:
    """All GPUs of the make that comes first in `accelerators`."""
    found = list(accelerators())
    return [gpu for gpu in found if gpu.type == found[0].type]


def describe_accelerator(device: torch.device) -> str:
    """Name, compute capability of an NVIDIA GPU, and memory, as far as PyTorch knows them."""
    if device.type == "mps":
        return f"Apple GPU, {torch.mps.recommended_max_memory() / 2**30:.1f} GiB recommended"
    gpu = getattr(torch, device.type).get_device_properties(device)
    capability = (
        f", compute capability {gpu.major}.{gpu.minor}" if device.type == "cuda" and not torch.version.hip else ""
    )
    return f"{gpu.name}{capability}, {gpu.total_memory / 2**30:.1f} GiB"


def describe(device: torch.device) -> str:
    """The device and version of torch, for tables of measurements."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} with {threads()}, torch {torch.__version__}"


def threads() -> str:
    """The threads that PyTorch uses on a CPU, for messages: ``2 threads``."""
    return counted(torch.get_num_threads(), "thread")
