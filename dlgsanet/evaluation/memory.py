"""The memory that networks need on a CPU. Linux gives out more than there is, and ends the process when it is used."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.parts import copy_of
from dlgsanet.errors import UserError, reason_of
from dlgsanet.memory import free_memory, is_out_of_memory
from dlgsanet.pictures.tile_sizes import needed_memory


def least_memory(network: nn.Module, shape: Sequence[int], gradients: bool = False) -> int:
    """Bytes that one run needs at least for an input [B, C, H, W].

    For a DLGSANet: what is planned, with its output and, for gradients, the input of every layer. For others: the
    tensors that are alive at once; PyTorch's convolutions may copy some of them.
    """
    batch, channels, height, width = shape
    if isinstance(network, DLGSANet):
        values = channels * (1 + network.upscale**2)
        if gradients:
            values += len(network.layers()) * len(network.shallow.weight)
        return batch * (needed_memory(network, height, width, None) + 4 * height * width * values)
    live = _LiveTensors()
    with suppress(Exception):  # a network of other projects may not be counted so: then it is tried
        twin = copy_of(network).eval()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            with fake_tensors(), live:
                twin(torch.empty(tuple(shape), requires_grad=gradients))
    return live.peak


@contextmanager
def fake_tensors() -> Iterator[None]:
    """PyTorch's mode of tensors without values, without its log of what fails there: the error says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = before


class _LiveTensors(TorchDispatchMode):
    """Within the context, counts the bytes of the tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: found for key, found in self._storages.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(count for _, count in self._storages.values()))
        return out


def _check_memory(network: nn.Module, shape: Sequence[int], device: torch.device, gradients: bool = False) -> None:
    """Raise a MemoryError if the device is a CPU that has less memory free than one run needs; see `least_memory`."""
    free = free_memory(device) if device.type == "cpu" else None
    if free is not None and least_memory(network, shape, gradients) > free:
        raise MemoryError


def memory_checked(run: Callable[[Tensor], Tensor], network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function `run`, which runs the network. It raises a MemoryError before a run that does not fit into a CPU."""
    largest = 0  # values of an input that fitted; smaller ones are not checked, which can take as long as a run

    def checked(x: Tensor) -> Tensor:
        nonlocal largest
        if x.numel() > largest:
            _check_memory(network, x.shape, x.device)
            largest = x.numel()
        return run(x)

    return checked


@contextmanager
def enough_memory(
    network: nn.Module, shape: Sequence[int], device: torch.device, gradients: bool = False, remedy: str = ""
) -> Iterator[None]:
    """A block that runs the network for an input [B, C, H, W]. It does not begin if that does not fit into a CPU.

    Raises:
        UserError: memory is too small, before the block or in it, or the network does not take the image; the message
            names its size.
    """
    try:
        _check_memory(network, shape, device, gradients)
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            what = f"the network cannot take {shape[3]}x{shape[2]} pixels"
            raise UserError(f"{what}: {reason_of(error, 200)}") from error
        raise UserError(f"{shape[3]}x{shape[2]} pixels need more memory than {device} has{remedy}") from None
