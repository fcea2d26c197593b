"""Devices: find one by name, and describe it for tables of measurements."""

import torch

from dlgsanet.errors import ArgumentError

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
        torch.empty(1, device=found)
    # The type of the exception differs between devices: RuntimeError, AssertionError, NotImplementedError.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArgumentError(argument, f"cannot use {str(device)!r}: {reason}") from None
    if found.type == "meta":
        raise ArgumentError(argument, "'meta' does not compute; use cpu or cuda")
    return found


def _is_available(name: str) -> bool:
    module = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    return module is not None and module.is_available()


def describe(device: torch.device) -> str:
    """The device and version of torch, for tables of measurements."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} with {threads()}, torch {torch.__version__}"


def threads() -> str:
    """The threads that PyTorch uses on a CPU, for messages: ``2 threads``."""
    number = torch.get_num_threads()
    return "1 thread" if number == 1 else f"{number} threads"
