"""The layers in strips against the reference: any dtype, window size, shape and memory layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import reference
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.torch import dynamic_conv
from tests.ops import native_calls as calls

# Of the largest sum of magnitudes, as terms may cancel: in the wide dtypes the order of sums alone differs; the narrow
# ones round the same sum once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_equal_to_reference(operation: str, *arguments: Tensor | int | None) -> None:
    got, want = (calls.results(implementation, operation, arguments) for implementation in (strips, reference))
    for g, w, summed in zip(got, want, calls.results(reference, operation, calls.magnitudes(arguments)), strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        assert (g.double() - w.double()).abs().max() <= TOLERANCE[arguments[0].dtype] * summed.max()


@st.composite
def convolutions(draw) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int, Tensor]:
    """Arguments of the fused convolution and a gradient of its output, some of them not contiguous."""
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
    return image(channels), image(features), weight, bias, window, image(channels)


@pytest.fixture(params=["one strip", "many strips"])
def _strip_sizes(request, monkeypatch):
    if request.param == "many strips":
        monkeypatch.setattr(dynamic_conv, "FILTERS_IN_STRIP", 1)
        monkeypatch.setattr(dynamic_conv, "ELEMENTS_PER_THREAD", 1 << 6)


@pytest.mark.usefixtures("_strip_sizes")
class TestDynamicConvolution:
    @settings(deadline=None, max_examples=40)
    @given(convolutions())
    def test_fused(self, arguments):
        *arguments, grad = arguments
        assert_equal_to_reference("fused_dynamic_depthwise_conv", *arguments)
        assert_equal_to_reference("fused_dynamic_depthwise_conv_backward", grad, *arguments)

    @settings(deadline=None, max_examples=40)
    @given(convolutions())
    def test_with_given_filters(self, arguments):
        x, z, weight, bias, window, grad = arguments
        filters = reference.form_filters(z, weight, bias, window).to(x.dtype)
        assert_equal_to_reference("dynamic_depthwise_conv", x, filters)
        assert_equal_to_reference("dynamic_depthwise_conv_backward", grad, x, filters)


def test_other_devices_fall_back(monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    x = torch.empty(1, 6, 8, 8, device="meta")
    chosen = dispatch.select("dynamic_depthwise_conv", x, torch.empty(1, 1, 7, 7, 8, 8, device="meta"))
    assert chosen is reference
