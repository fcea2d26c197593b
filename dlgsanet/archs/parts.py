"""Layers compute with the weights of their parts. They call these only where one does more than its weights say."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from dlgsanet.archs.convolution import Conv3x3
from dlgsanet.archs.norm import LayerNorm

Network = TypeVar("Network", bound=nn.Module)

_PLAIN = (nn.Conv2d.forward, Conv3x3.forward, LayerNorm.forward)


def is_plain_part(part: nn.Module) -> bool:
    """Whether a convolution or norm has no hooks, no other `forward` (LoRA, quantisation), padding or dilation."""
    hooked = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    if hooked or not computes_one_of(_PLAIN, part):
        return False
    return not isinstance(part, nn.Conv2d) or (part.padding_mode == "zeros" and part.dilation == (1, 1))


def computes_one_of(forwards: Sequence[Callable[..., Any]], module: nn.Module) -> bool:
    """Whether a module has one of these `forward` functions, and none of its own."""
    return "forward" not in vars(module) and type(module).forward in forwards


def has_plain_parts(layer: nn.Module) -> bool:
    """Whether all parts of a layer are plain, and those with a bias are the ones that its record takes a bias from."""
    biased = cast("frozenset[str]", layer.biased)
    return all(
        is_plain_part(part) and (part.bias is not None) == (name in biased) for name, part in layer.named_children()
    )


def is_plain_sequence(sequence: nn.Module) -> bool:
    """Whether calling a module is the same as calling its parts in turn."""
    hooked = sequence._forward_hooks or sequence._forward_pre_hooks
    return not hooked and computes_one_of((nn.Sequential.forward,), sequence)


def record_of(layer: nn.Module) -> Callable[[], Any] | None:
    """The function `record` of a layer that is computed by one; None: the layer calls its parts."""
    record: Callable[[], Any] | None = getattr(layer, "record", None)
    return record if record and has_plain_parts(layer) else None


def copy_of(network: Network) -> Network:
    """`copy.deepcopy` of a network, also where `torch.nn.utils.weight_norm` keeps a weight that it has computed."""
    values = (value for module in network.modules() for value in vars(module).values())
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in computed})
