"""The compiled layers: random calls against the float64 reference, on every instruction set that this machine has."""

import pytest
import torch
from hypothesis import Phase, given, settings

from dlgsanet.ops.backends import native, reference
from dlgsanet.ops.backends.native import build, library
from tests.ops import native_calls as calls

TOLERANCE = 2e-6  # of the output's range
GRADIENT_TOLERANCE = 1e-5  # of weights: sums over thousands of pixels in float32
_WORDS = {"AVX512": "avx512", "AVX2": "avx2"}
_ALL = list(build.instruction_sets())
AVAILABLE = _ALL[_ALL.index(_WORDS.get(torch.backends.cpu.get_cpu_capability(), "portable")) :]

RANDOM_CALLS = {
    "gated_feed_forward": calls.FEED_FORWARDS,
    "dynamic_local_attention": calls.LOCAL_ATTENTIONS,
    "channel_attention": calls.CHANNEL_ATTENTIONS,
    "fused_dynamic_depthwise_conv": calls.CONVOLUTIONS,
    "fused_dynamic_depthwise_conv_backward": calls.CONVOLUTIONS,
    "differentiable_dynamic_local_attention": calls.TRAINED_LOCAL_ATTENTIONS,
    "differentiable_gated_feed_forward": calls.FEED_FORWARDS,
    "differentiable_channel_attention": calls.TRAINED_ATTENTIONS,
}


@pytest.fixture(scope="module", autouse=True)
def _built():
    if problem := build.build(build.HERE):
        pytest.skip(problem)


@pytest.mark.parametrize("operation", RANDOM_CALLS)
def test_random_calls_follow_the_reference(operation):
    check_random_calls(operation, 3)


@pytest.mark.long
@pytest.mark.parametrize("operation", RANDOM_CALLS)
def test_200_random_calls_follow_the_reference(operation):
    check_random_calls(operation, 200)


def check_random_calls(operation: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(RANDOM_CALLS[operation])
    def check(call):
        args = call.arguments()
        if operation == "fused_dynamic_depthwise_conv_backward":
            args = (args[0].flip(0), *args)
        _assert_follows_reference(operation, args)

    check()


def _assert_follows_reference(operation: str, args) -> None:
    assert native.why_not(operation, *args) is None
    want = calls.results(reference, operation, [_in_float64(a) for a in args])
    margins = _margins(operation, args, want)
    for name in AVAILABLE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "instruction_set", lambda name=name: name)
            got = calls.results(native, operation, args)
        for g, w, margin in zip(got, want, margins, strict=True):
            assert g.shape == w.shape
            assert ((g - w).abs() <= margin).all()


def _in_float64(argument):
    return argument.double() if isinstance(argument, torch.Tensor) else argument


def _margins(operation: str, args, want: list[torch.Tensor]) -> list[torch.Tensor]:
    """How far each result may be off."""
    if operation == "fused_dynamic_depthwise_conv_backward":
        # Sums over all pixels may cancel: their error is a share of what was added, whatever its sign.
        grad_x, grad_z, *weights = calls.results(reference, operation, calls.magnitudes(args))
        return [TOLERANCE * grad_x, TOLERANCE * grad_z, *(GRADIENT_TOLERANCE * w for w in weights)]
    out, *gradients = want
    largest = max((g.abs().max() for g in gradients), default=None)  # those of a few pixels may vanish by cancellation
    return [TOLERANCE * out.abs().max(), *(GRADIENT_TOLERANCE * largest for _ in gradients)]
