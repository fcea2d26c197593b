"""The layers in strips against the reference: any dtype, window size, shape and memory layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.torch import dynamic_conv
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv, tensors_of
from tests.ops import calls

# Relative to the largest sum of magnitudes, because terms may cancel. In float64 and float32 the order of additions
# differs; float16 and bfloat16 round the same sum once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_equal_to_reference(convolution: DynamicConv | FusedDynamicConv, x: Tensor) -> None:
    for training in (False, True):
        call = calls.Call(convolution, x, training)
        got, want = calls.results(strips.BACKEND, call), calls.results(reference.BACKEND, call.map(Tensor.double))
        summed = calls.results(reference.BACKEND, call.map(lambda t: t.double().abs()))
        of = [x, *tensors_of(convolution)] if training else [x]
        for g, w, s, t in zip(got, want, summed, of, strict=False):  # without a bias there is one gradient more
            assert g.shape == w.shape
            assert g.dtype == t.dtype
            assert (g.double() - w).abs().max() <= TOLERANCE[x.dtype] * s.max()


@st.composite
def convolutions(draw) -> tuple[FusedDynamicConv, Tensor]:
    """The fused convolution and an x, in any layout."""
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    groups, shared, features = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 19)), draw(st.integers(1, 33))
    window = draw(st.sampled_from([1, 3, 5, 7]))
    layout = draw(st.sampled_from(["contiguous", "channels last", "cropped"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def image(channels: int) -> Tensor:
        x = torch.randn(batch, channels, height + 2, width + 1, generator=generator, dtype=torch.float64).to(dtype)
        x = x[..., 1:-1, 1:]
        if layout == "cropped":
            return x
        return x.contiguous(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(groups * window**2, features, generator=generator, dtype=wide)
    bias = torch.randn(groups * window**2, generator=generator, dtype=wide) if draw(st.booleans()) else None
    channels = groups * shared
    x = image(channels)
    return FusedDynamicConv(image(features), weight, bias, window), x


@pytest.fixture(params=["one strip", "many strips"])
def _strip_sizes(request, monkeypatch):
    if request.param == "many strips":
        monkeypatch.setattr(dynamic_conv, "FILTERS_IN_STRIP", 1)
        monkeypatch.setattr(dynamic_conv, "ELEMENTS_PER_THREAD", 1 << 6)


@pytest.mark.usefixtures("_strip_sizes")
class TestDynamicConvolution:
    @settings(deadline=None, max_examples=40)
    @given(convolutions())
    def test_fused(self, call):
        assert_equal_to_reference(*call)

    @settings(deadline=None, max_examples=40)
    @given(convolutions())
    def test_with_given_filters(self, call):
        convolution, x = call
        assert_equal_to_reference(DynamicConv(reference.form_filters(convolution).to(x.dtype)), x)
