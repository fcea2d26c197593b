"""What computes the layers: one file or folder for each backend, with an object `BACKEND` of the class below."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from dlgsanet.ops.records import (
    OPERATIONS,
    ChannelAttention,
    Convolution,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    Layer,
    LocalAttention,
    Record,
)

NO_LAYER = "it has no such layer"

L = TypeVar("L")


@dataclass(frozen=True)
class LayerFunctions(Generic[L]):
    """How a backend computes a layer: functions of the record and x [B, C, H, W] that return [B, C, H, W]."""

    infer: Callable[[L, Tensor], Tensor]  # without gradients
    train: Callable[[L, Tensor], Tensor]  # autograd can follow it


@dataclass(frozen=True)
class ConvolutionFunctions(Generic[L]):
    """How a backend computes a dynamic convolution and its gradients."""

    forward: Callable[[L, Tensor], Tensor]  # (record, x)
    # (record, x, gradient of the result) -> gradients of x and of the record's tensors; one of the bias in any case
    backward: Callable[[L, Tensor, Tensor], tuple[Tensor, ...]]


def _takes_all(record: Record, x: Tensor, training: bool) -> None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to compute layers. What it has no functions for, the next backend computes.

    Attributes:
        name: in ``DLGSANET_BACKEND``, ``backend=`` and messages.
        unsuited: why it cannot take a call of a layer that it has, in a few words, or None.
        feature_maps: tensors [B, C, H, W] that live at once while `channel_attention` runs without gradients; memory
            is planned with it.
    """

    name: str
    unsuited: Callable[[Record, Tensor, bool], str | None] = _takes_all
    dynamic_local_attention: LayerFunctions[LocalAttention] | None = None
    channel_attention: LayerFunctions[ChannelAttention] | None = None
    gated_feed_forward: LayerFunctions[GatedFeedForward] | None = None
    dynamic_depthwise_conv: ConvolutionFunctions[DynamicConv] | None = None
    fused_dynamic_depthwise_conv: ConvolutionFunctions[FusedDynamicConv] | None = None
    feature_maps: int = 18

    def functions(self, kind: type) -> Any:
        """`LayerFunctions` or `ConvolutionFunctions` for a kind of record, or None."""
        return getattr(self, OPERATIONS[kind])

    def refuses(self, record: Record, x: Tensor, training: bool = False) -> str | None:
        """Why this backend cannot take a call, in a few words, or None; training: a gradient will be wanted."""
        if self.functions(type(record)) is None:
            return NO_LAYER
        return self.unsuited(record, x, training)

    def infer(self, layer: Layer, x: Tensor) -> Tensor:
        """The layer's result, without gradients."""
        return self.functions(type(layer)).infer(layer, x)

    def train(self, layer: Layer, x: Tensor) -> Tensor:
        """The layer's result, composed so that autograd can follow it."""
        return self.functions(type(layer)).train(layer, x)

    def convolve(self, convolution: Convolution, x: Tensor) -> Tensor:
        return self.functions(type(convolution)).forward(convolution, x)

    def convolve_backward(self, convolution: Convolution, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x and of the record's tensors (without a bias: of the bias that was not added)."""
        return self.functions(type(convolution)).backward(convolution, x, grad)
