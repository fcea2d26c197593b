"""Random calls of the layers that compiled backends have."""

import dataclasses
from dataclasses import dataclass

import torch
from hypothesis import strategies as st


def random_tensors(seed: int):
    """A function that makes random tensors of the shapes it is given, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


@st.composite
def sizes(draw) -> tuple[int, int, int]:
    """B, H, W: single pixels, odd ones, and widths beyond a tile's."""
    return draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 80) | st.integers(300, 340))


@dataclass(frozen=True)
class FeedForward:
    size: tuple[int, int, int]
    channels: int
    half: int
    seed: int

    def arguments(self) -> tuple:
        random, (batch, height, width), c, h = random_tensors(self.seed), self.size, self.channels, self.half
        return (
            random(batch, c, height, width),
            random(c),
            random(c),
            random(2 * h, c, 1, 1) / c**0.5,
            random(2 * h, 1, 3, 3) / 3,
            random(c, h, 1, 1) / h**0.5,
        )


@dataclass(frozen=True)
class Convolution:
    size: tuple[int, int, int]
    groups: int
    share: int
    inputs: int
    window_size: int
    with_bias: bool
    seed: int

    def arguments(self) -> tuple:
        random, (batch, height, width) = random_tensors(self.seed), self.size
        outputs = self.groups * self.window_size**2
        return (
            random(batch, self.groups * self.share, height, width),
            random(batch, self.inputs, height, width),
            random(outputs, self.inputs),
            random(outputs) if self.with_bias else None,
            self.window_size,
        )


@dataclass(frozen=True)
class LocalAttention:
    size: tuple[int, int, int]
    groups: int
    share: int
    squeezed: int
    window_size: int
    seed: int

    def arguments(self) -> tuple:
        random, (batch, height, width) = random_tensors(self.seed), self.size
        c, d, k, outputs = self.groups * self.share, self.squeezed, self.window_size, self.groups * self.window_size**2
        return (
            random(batch, c, height, width),
            random(c),
            random(c),
            random(c, c, 1, 1) / c**0.5,
            random(d, c, 1, 1) / c**0.5,
            random(d),
            random(d, 1, k, k) / k,
            random(d),
            random(outputs, d, 1, 1) / d**0.5,
            random(outputs),
            random(c, c, 1, 1) / c**0.5,
            k,
        )


@dataclass(frozen=True)
class ChannelAttention:
    size: tuple[int, int, int]
    heads: int
    share: int
    activation: str
    window: int | None
    seed: int

    def arguments(self) -> tuple:
        random, (batch, height, width), c = random_tensors(self.seed), self.size, self.heads * self.share
        return (
            random(batch, c, height, width),
            random(c),
            random(c),
            random(3 * c, c, 1, 1) / c**0.5,
            random(3 * c, 1, 3, 3) / 3,
            random(self.heads, 1, 1),
            random(c, c, 1, 1) / c**0.5,
            self.activation,
            0.5,
            self.window,
        )


SEEDS = st.integers(0, 10**6)
FEED_FORWARDS = st.builds(FeedForward, sizes(), st.integers(1, 50), st.integers(1, 50), SEEDS)
CONVOLUTIONS = st.builds(
    Convolution,
    sizes(),
    groups=st.integers(1, 5),
    share=st.integers(1, 15),
    inputs=st.integers(1, 25),
    window_size=st.sampled_from([1, 3, 5, 7, 9, 11]),
    with_bias=st.booleans(),
    seed=SEEDS,
)
LOCAL_ATTENTIONS = st.builds(
    LocalAttention,
    sizes(),
    groups=st.integers(1, 5),
    share=st.integers(1, 10),
    squeezed=st.integers(1, 14),
    window_size=st.sampled_from([1, 3, 5, 7, 9, 11]),
    seed=SEEDS,
)
CHANNEL_ATTENTIONS = st.builds(
    ChannelAttention,
    sizes(),
    heads=st.integers(1, 6),
    share=st.integers(1, 10),
    activation=st.sampled_from(["relu", "gelu", "sigmoid", "softmax", "topk"]),
    window=st.none() | st.integers(1, 96),
    seed=SEEDS,
)
# The gradient of few normalised channels is nothing but rounding.
TRAINED_LOCAL_ATTENTIONS = st.builds(dataclasses.replace, LOCAL_ATTENTIONS, share=st.integers(4, 10))
# And so is that of similarities over a single pixel, which are 1 or -1 whatever q and k are.
TRAINED_ATTENTIONS = st.builds(
    dataclasses.replace,
    CHANNEL_ATTENTIONS,
    share=st.integers(4, 10),
    size=st.tuples(st.integers(1, 3), st.integers(4, 24), st.integers(4, 50)),
    window=st.none(),
    activation=st.just("relu"),
)


def one_of_each(size: tuple[int, int, int] = (2, 21, 37)) -> dict[str, tuple]:
    """A call of every operation, of odd channels and with overlapping windows: operation -> its arguments."""
    local = LocalAttention(size, 2, share=8, squeezed=3, window_size=7, seed=4).arguments()
    attention = ChannelAttention(size, heads=3, share=5, activation="topk", window=16, seed=1)
    trained = dataclasses.replace(attention, window=None)
    feed_forward = FeedForward(size, channels=13, half=9, seed=2).arguments()
    x, *convolution = Convolution(size, 3, share=7, inputs=5, window_size=5, with_bias=True, seed=3).arguments()
    return {
        "dynamic_local_attention": local,
        "channel_attention": attention.arguments(),
        "gated_feed_forward": feed_forward,
        "fused_dynamic_depthwise_conv": (x, *convolution),
        "fused_dynamic_depthwise_conv_backward": (x.flip(0), x, *convolution),
        "differentiable_dynamic_local_attention": local,
        "differentiable_gated_feed_forward": feed_forward,
        "differentiable_channel_attention": trained.arguments(),
    }


def magnitudes(args) -> list:
    """The arguments of a call whose results are the sums of the magnitudes of what a call with `args` adds."""
    return [a.double().abs() if isinstance(a, torch.Tensor) else a for a in args]


def results(backend, operation: str, args) -> list[torch.Tensor]:
    """What a backend makes of a call; of a differentiable layer the gradients of a weighted sum of its result too."""
    function = getattr(backend, operation)
    if not operation.startswith("differentiable_"):
        out = function(*args)
        return list(out) if isinstance(out, tuple) else [out]
    args = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    out = function(*args)
    (out * random_tensors(0)(*out.shape)).sum().backward()
    return [out.detach(), *(a.grad for a in args if isinstance(a, torch.Tensor))]
