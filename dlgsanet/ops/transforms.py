"""What a call is for besides its result: to trace a graph, or to be differentiated or vectorised by `torch.func`."""

import torch
from torch.autograd import forward_ad


def is_traced() -> bool:
    """Whether a graph is traced: torch.compile, torch.export, torch.jit.trace."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp, ...) or forward-mode differentiation follows PyTorch's operations."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def is_plain() -> bool:
    """Neither of both: only the result counts."""
    return not (is_traced() or is_transformed())
