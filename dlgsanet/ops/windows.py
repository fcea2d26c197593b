"""Where the windows of test-time local conversion lie (TLC: Chu et al., ECCV 2022, arXiv 2112.04491)."""

import torch
from torch import Tensor


def window_starts(size: int, window: int) -> list[int]:
    """First pixels of the windows of min(size, window) pixels that cover an axis of `size` pixels.

    As few windows as can cover the axis, evenly spaced in whole pixels; the last one ends at the border.
    """
    window = min(size, window)
    if size == window:
        return [0]
    count = (size - 1) // window + 1
    step = -(-(size - window) // (count - 1))
    return [*range(0, size - window, step), size - window]


def covering_windows(size: int, window: int, device: torch.device | None = None) -> Tensor:
    """Pixel numbers [windows, min(size, window)] of every window along an axis of `size` pixels."""
    starts, window = window_starts(size, window), min(size, window)
    step = starts[1] if len(starts) > 1 else 0
    # Computed where they are wanted: a copy from the CPU could not be captured in a CUDA graph.
    first = (torch.arange(len(starts), device=device) * step).clamp(max=size - window)
    return first[:, None] + torch.arange(window, device=device)
