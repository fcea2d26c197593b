"""Random calls of layers and convolutions, and the results of a backend."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.ops.backends import Backend
from dlgsanet.ops.records import (
    ChannelAttention,
    Conv3x3,
    DynamicConv,
    FusedDynamicConv,
    GatedFeedForward,
    LocalAttention,
    Record,
    map_tensors,
    tensors_of,
)

Size = tuple[int, int, int]  # B, H, W


class Call(NamedTuple):
    record: Record
    x: Tensor
    training: bool = False

    def map(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """The call with every tensor changed."""
        return Call(map_tensors(self.record, function), function(self.x), self.training)


def random_tensors(seed: int):
    """A function that makes random tensors of given shapes; the same seed gives the same tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def feed_forward(size: Size, channels: int, half: int, seed: int, training: bool = False) -> Call:
    random, (batch, height, width), c, h = random_tensors(seed), size, channels, half
    x = random(batch, c, height, width)
    record = GatedFeedForward(
        norm_weight=random(c),
        norm_bias=random(c),
        proj_in=random(2 * h, c, 1, 1) / c**0.5,
        depthwise=random(2 * h, 1, 3, 3) / 3,
        proj_out=random(c, h, 1, 1) / h**0.5,
    )
    return Call(record, x, training)


def fused_convolution(
    size: Size, groups: int, share: int, inputs: int, window_size: int, with_bias: bool, seed: int, training=False
) -> Call:
    random, (batch, height, width) = random_tensors(seed), size
    outputs = groups * window_size**2
    x = random(batch, groups * share, height, width)
    z, weight = random(batch, inputs, height, width), random(outputs, inputs)
    return Call(FusedDynamicConv(z, weight, random(outputs) if with_bias else None, window_size), x, training)


def local_attention(
    size: Size, groups: int, share: int, squeezed: int, window_size: int, seed: int, training: bool = False
) -> Call:
    random, (batch, height, width) = random_tensors(seed), size
    c, d, k, outputs = groups * share, squeezed, window_size, groups * window_size**2
    x = random(batch, c, height, width)
    record = LocalAttention(
        norm_weight=random(c),
        norm_bias=random(c),
        proj_in=random(c, c, 1, 1) / c**0.5,
        squeeze_weight=random(d, c, 1, 1) / c**0.5,
        squeeze_bias=random(d),
        spatial_weight=random(d, 1, k, k) / k,
        spatial_bias=random(d),
        filter_weight=random(outputs, d, 1, 1) / d**0.5,
        filter_bias=random(outputs),
        proj_out=random(c, c, 1, 1) / c**0.5,
        window_size=k,
    )
    return Call(record, x, training)


def channel_attention(
    size: Size, heads: int, share: int, activation: str, window: int | None, seed: int, training: bool = False
) -> Call:
    random, (batch, height, width), c = random_tensors(seed), size, heads * share
    x = random(batch, c, height, width)
    record = ChannelAttention(
        norm_weight=random(c),
        norm_bias=random(c),
        qkv_weight=random(3 * c, c, 1, 1) / c**0.5,
        depthwise=random(3 * c, 1, 3, 3) / 3,
        temperature=random(heads, 1, 1),
        proj_out=random(c, c, 1, 1) / c**0.5,
        activation=activation,
        topk_ratio=0.5,
        window=window,
    )
    return Call(record, x, training)


def convolution(
    size: Size, channels: int, outputs: int, with_bias: bool, seed: int, factor: int = 1, around: bool = False,
    training: bool = False,
) -> Call:  # fmt: skip
    """outputs: channels of the result; around: a mean is subtracted before, and one is added after."""
    random, (batch, height, width) = random_tensors(seed), size
    x = random(batch, channels, height, width)
    convolved = outputs * factor**2
    record = Conv3x3(
        weight=random(convolved, channels, 3, 3) / (9 * channels) ** 0.5,
        bias=random(convolved) if with_bias else None,
        mean=random(1, channels, 1, 1) if around else None,
        factor=factor,
        to=random(1, outputs, 1, 1) if around else None,
    )
    return Call(record, x, training)


@st.composite
def sizes(draw) -> Size:
    """Sizes from single pixels to images wider than a tile."""
    return draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 80) | st.integers(300, 340))


def calls(function: Callable[..., Call], **arguments) -> st.SearchStrategy[Callable[[], Call]]:
    """Functions that make a call, so that a failing example is printed with its arguments."""
    return st.builds(partial, st.just(function), size=arguments.pop("size", sizes()), seed=SEEDS, **arguments)


SEEDS = st.integers(0, 10**6)
WINDOWS = st.sampled_from([1, 3, 5, 7, 9, 11])
FEED_FORWARD = {"channels": st.integers(1, 50), "half": st.integers(1, 50)}
CONV_3X3 = {
    "channels": st.integers(1, 50),
    "outputs": st.integers(1, 30),
    "factor": st.integers(1, 4),
    "with_bias": st.booleans(),
    "around": st.booleans(),
}
CONVOLUTION = {
    "groups": st.integers(1, 5),
    "share": st.integers(1, 15),
    "inputs": st.integers(1, 25),
    "window_size": WINDOWS,
    "with_bias": st.booleans(),
}
LOCAL_ATTENTION = {"groups": st.integers(1, 5), "squeezed": st.integers(1, 14), "window_size": WINDOWS}
ACTIVATIONS = st.sampled_from(["relu", "gelu", "sigmoid", "softmax"])
FOR_TRAINING = st.just(True)

# Name -> random calls.
RANDOM = {
    "gated_feed_forward": calls(feed_forward, **FEED_FORWARD),
    "dynamic_local_attention": calls(local_attention, share=st.integers(1, 10), **LOCAL_ATTENTION),
    "channel_attention": calls(
        channel_attention,
        heads=st.integers(1, 6),
        share=st.integers(1, 10),
        activation=ACTIVATIONS,
        window=st.none() | st.integers(1, 96),
    ),
    # In small windows similarities are nearly equal, so that rounding decides which of them are selected.
    "channel_attention, topk": calls(
        channel_attention,
        heads=st.integers(1, 6),
        share=st.integers(1, 10),
        activation=st.just("topk"),
        window=st.none() | st.integers(24, 96),
        size=st.tuples(st.integers(1, 3), st.integers(8, 40), st.integers(8, 80) | st.integers(300, 340)),
    ),
    "convolution": calls(convolution, **CONV_3X3),
    "convolution, training": calls(convolution, training=FOR_TRAINING, **CONV_3X3),
    "fused_dynamic_depthwise_conv": calls(fused_convolution, **CONVOLUTION),
    "fused_dynamic_depthwise_conv, training": calls(fused_convolution, training=FOR_TRAINING, **CONVOLUTION),
    "gated_feed_forward, training": calls(feed_forward, training=FOR_TRAINING, **FEED_FORWARD),
    # With few normalised channels the gradient is only rounding error.
    "dynamic_local_attention, training": calls(
        local_attention, share=st.integers(4, 10), training=FOR_TRAINING, **LOCAL_ATTENTION
    ),
    # The same is true of similarities over a single pixel, which are always 1 or -1.
    "channel_attention, training": calls(
        channel_attention,
        size=st.tuples(st.integers(1, 3), st.integers(4, 24), st.integers(4, 50)),
        heads=st.integers(1, 6),
        share=st.integers(4, 10),
        activation=st.just("relu"),
        window=st.none(),
        training=FOR_TRAINING,
    ),
}


def one_of_each(size: Size = (2, 21, 37)) -> dict[str, Call]:
    """A call of every name of `RANDOM`, with odd channels and overlapping windows."""
    local = local_attention(size, 2, share=8, squeezed=3, window_size=7, seed=4)
    attention = channel_attention(size, heads=3, share=5, activation="topk", window=16, seed=1)
    network = feed_forward(size, channels=13, half=9, seed=2)
    fused = fused_convolution(size, 3, share=7, inputs=5, window_size=5, with_bias=True, seed=3)
    trained = channel_attention(size, heads=3, share=5, activation="topk", window=None, seed=1, training=True)
    plain = convolution(size, channels=7, outputs=3, factor=2, with_bias=True, seed=5)
    return {
        "convolution": plain,
        "convolution, training": plain._replace(training=True),
        "dynamic_local_attention": local,
        "channel_attention": attention,
        "gated_feed_forward": network,
        "fused_dynamic_depthwise_conv": fused,
        "fused_dynamic_depthwise_conv, training": fused._replace(training=True),
        "dynamic_local_attention, training": local._replace(training=True),
        "gated_feed_forward, training": network._replace(training=True),
        "channel_attention, training": trained,
    }


def results(backend: Backend, call: Call) -> list[Tensor]:
    """The results of a backend for a call.

    For a layer in training: the output, and the gradients of a weighted sum of it. For a convolution in training: the
    gradients for the output gradient ``x.flip(0)``.
    """
    record, x, training = call
    if isinstance(record, DynamicConv | FusedDynamicConv):
        return [*backend.convolve_backward(record, x, x.flip(0))] if training else [backend.convolve(record, x)]
    if not training:
        return [backend.infer(record, x)]
    record, x, _ = call.map(lambda t: t.detach().clone().requires_grad_())
    out = backend.train(record, x)
    (out * random_tensors(0)(*out.shape).to(out)).sum().backward()
    return [out.detach(), *(t.grad for t in (x, *tensors_of(record)))]
