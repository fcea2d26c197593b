"""The backends: one file or folder each, with an object `BACKEND` of the class below."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from dlgsanet.ops.records import (
    OPERATIONS,
    ChannelAttention,
    Conv3x3,
    Convolution,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    Layer,
    LocalAttention,
    Record,
)

NO_LAYER = "this backend does not have this layer"

L = TypeVar("L")


@dataclass(frozen=True)
class LayerFunctions(Generic[L]):
    """The functions of a backend for a layer. They take the record and x [B, C, H, W] and return the layer's result."""

    infer: Callable[[L, Tensor], Tensor]  # without gradients
    train: Callable[[L, Tensor], Tensor] | None  # differentiable by autograd; None: the next backend's function is used


@dataclass(frozen=True)
class ConvolutionFunctions(Generic[L]):
    """The functions of a backend for a dynamic convolution and its gradients."""

    forward: Callable[[L, Tensor], Tensor]  # (record, x)
    # (record, x, gradient of the result) -> gradients of x and of the record's tensors, always including the bias
    backward: Callable[[L, Tensor, Tensor], tuple[Tensor, ...]]


def _takes_all(record: Record, x: Tensor, training: bool) -> None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to compute layers. The next backend computes the layers for which this one has no functions.

    Attributes:
        name: used in ``DLGSANET_BACKEND``, ``backend=`` and messages.
        unsuited: a short reason why it does not support a call of a layer that it has, or None.
        feature_maps: number of tensors [B, C, H, W] that exist at once while `channel_attention` runs without
            gradients. Memory planning uses it.
        add_convolution: adds a convolution of x, the second argument, to the third argument in place, without
            gradients.
        bounds_memory: layers without gradients need little memory but for the tensor [B, C, H, W] that they return,
            and give what reads and writes tensors to `kept_memory.run`.
        keeps_x_alone: layers that are trained keep only their input and parameters for the backward pass.
        timed: what the time of a layer depends on, apart from the card, the code, the number of pixels and whether it
            is trained. The layer is then used where it is faster than that of the next backend; None, or a function
            that returns None: always.
    """

    name: str
    unsuited: Callable[[Record, Tensor, bool], str | None] = _takes_all
    dynamic_local_attention: LayerFunctions[LocalAttention] | None = None
    channel_attention: LayerFunctions[ChannelAttention] | None = None
    gated_feed_forward: LayerFunctions[GatedFeedForward] | None = None
    convolution: LayerFunctions[Conv3x3] | None = None
    add_convolution: Callable[[Conv3x3, Tensor, Tensor], None] | None = None
    dynamic_depthwise_conv: ConvolutionFunctions[DynamicConv] | None = None
    fused_dynamic_depthwise_conv: ConvolutionFunctions[FusedDynamicConv] | None = None
    feature_maps: float = 18
    bounds_memory: bool = False
    keeps_x_alone: bool = False
    timed: Callable[[Any, Tensor], tuple[object, ...] | None] | None = None

    def functions(self, kind: type) -> Any:
        """The `LayerFunctions` or `ConvolutionFunctions` for a type of record, or None."""
        return getattr(self, OPERATIONS[kind])

    def refuses(self, record: Record, x: Tensor, training: bool = False) -> str | None:
        """A short reason why this backend does not support a call, or None; training: gradients will be needed."""
        functions = self.functions(type(record))
        if functions is None or (training and isinstance(functions, LayerFunctions) and functions.train is None):
            return NO_LAYER
        return self.unsuited(record, x, training)

    def infer(self, layer: Layer | Conv3x3, x: Tensor) -> Tensor:
        """The layer's result, without gradients."""
        return self.functions(type(layer)).infer(layer, x)

    def train(self, layer: Layer | Conv3x3, x: Tensor) -> Tensor:
        """The layer's result, differentiable by autograd."""
        return self.functions(type(layer)).train(layer, x)

    def convolve(self, convolution: Convolution, x: Tensor) -> Tensor:
        return self.functions(type(convolution)).forward(convolution, x)

    def convolve_backward(self, convolution: Convolution, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x and of the record's tensors. If the bias is None, there is a gradient for it all the same."""
        return self.functions(type(convolution)).backward(convolution, x, grad)
