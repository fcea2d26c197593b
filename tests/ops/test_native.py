"""The compiled layers: random shapes against the float64 reference, on every instruction set that this machine has."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dlgsanet.ops import native, reference
from dlgsanet.ops.native import build, library

TOLERANCE = 2e-6  # of the output's range
# Ordered as torch orders them: a machine that has one has those after it.
_WORDS = {"AVX512": "avx512", "AVX2": "avx2"}
_ALL = list(build.instruction_sets())
AVAILABLE = _ALL[_ALL.index(_WORDS.get(torch.backends.cpu.get_cpu_capability(), "portable")) :]


@pytest.fixture(scope="module", autouse=True)
def _built():
    if problem := build.build(build.HERE):
        pytest.skip(problem)


def _random(seed: int):
    """A function that makes random tensors of the shapes it is given, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def _in_float64(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


def _on_every_instruction_set(operation: str, args):
    """The results of a call, one for each instruction set."""
    assert native.why_not(operation, *args) is None
    for name in AVAILABLE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "instruction_set", lambda name=name: name)
            yield getattr(native, operation)(*args)


def _assert_follows_reference(operation: str, args) -> None:
    """The native results lie within TOLERANCE of the float64 reference."""
    want = getattr(reference, operation)(*_in_float64(args))
    for got in _on_every_instruction_set(operation, args):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


# Calls of random shapes


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
        random, (batch, height, width), c, h = _random(self.seed), self.size, self.channels, self.half
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
        random, (batch, height, width) = _random(self.seed), self.size
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
        random, (batch, height, width) = _random(self.seed), self.size
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
        random, (batch, height, width), c = _random(self.seed), self.size, self.heads * self.share
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


def on_random(calls, examples: int = 3):
    """Run a test on random calls."""

    def decorate(test):
        return settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])(
            given(calls)(test)
        )

    return decorate


@on_random(FEED_FORWARDS)
def test_feed_forward_follows_the_reference(call):
    _assert_follows_reference("gated_feed_forward", call.arguments())


@on_random(LOCAL_ATTENTIONS)
def test_local_attention_follows_the_reference(call):
    _assert_follows_reference("dynamic_local_attention", call.arguments())


@on_random(CHANNEL_ATTENTIONS)
def test_channel_attention_follows_the_reference(call):
    _assert_follows_reference("channel_attention", call.arguments())


@on_random(CONVOLUTIONS)
def test_dynamic_convolution_follows_the_reference(call):
    _assert_follows_reference("fused_dynamic_depthwise_conv", call.arguments())


@on_random(CONVOLUTIONS)
def test_gradients_follow_the_reference(call):
    args = call.arguments()
    args = (_random(call.seed)(*args[0].shape), *args)
    want = reference.fused_dynamic_depthwise_conv_backward(*_in_float64(args))
    # Sums over all pixels may cancel: their error is a share of what was added, whatever its sign.
    magnitudes = [a.abs() if isinstance(a, torch.Tensor) else a for a in _in_float64(args)]
    added = reference.fused_dynamic_depthwise_conv_backward(*magnitudes)
    for got in _on_every_instruction_set("fused_dynamic_depthwise_conv_backward", args):
        for g, w, a in zip(got, want, added, strict=True):
            assert g.shape == w.shape
            assert ((g - w).abs() <= TOLERANCE * a).all()


def _gradients(function, args) -> list[torch.Tensor]:
    """Of a weighted sum of a layer's result, with respect to all of its tensors."""
    args = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    (function(*args) * _random(0)(*args[0].shape)).sum().backward()
    return [a.grad for a in args if isinstance(a, torch.Tensor)]


def _assert_gradients_follow_reference(operation: str, args) -> None:
    want = _gradients(getattr(reference, operation), _in_float64(args))
    largest = max(w.abs().max() for w in want)  # gradients of a few pixels may vanish by cancellation
    for name in AVAILABLE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "instruction_set", lambda name=name: name)
            got = _gradients(getattr(native, operation), args)
        for g, w in zip(got, want, strict=True):
            assert g.shape == w.shape
            assert (g - w).abs().max() <= 1e-5 * largest  # sums over thousands of pixels in float32


@on_random(FEED_FORWARDS)
def test_gradients_of_feed_forward_follow_the_reference(call):
    _assert_gradients_follow_reference("differentiable_gated_feed_forward", call.arguments())


@on_random(st.builds(dataclasses.replace, CHANNEL_ATTENTIONS, window=st.none(), activation=st.just("relu")))
def test_gradients_of_channel_attention_follow_the_reference(call):
    _assert_gradients_follow_reference("differentiable_channel_attention", call.arguments())
