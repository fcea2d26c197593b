"""The `torch` backend: layers against the reference in float64, and golden values."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.sparse_gsa import ACTIVATIONS, SparseGSA
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import composed
from dlgsanet.ops.backends.torch import dynamic_conv, inference
from tests.archs.golden_network import golden_network
from tests.archs.test_golden import CASES

# Relative to the largest value; the order of additions differs from the reference.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-6}


@contextmanager
def backend(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLGSANET_BACKEND", name)
        yield


HEADS, DIM = 3, 12
LAYERS = {
    "local attention": st.builds(MHDLSA, st.just(DIM), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, DIM])),
    "channel attention": st.builds(
        SparseGSA,
        st.just(DIM),
        st.sampled_from([1, HEADS]),
        st.sampled_from(ACTIVATIONS),
        st.sampled_from([0.1, 0.5, 1.0]),
        st.none() | st.integers(1, 20),
    ),
    "feed-forward": st.builds(GDFN, st.just(DIM), st.sampled_from([0.1, 1.7, 2.0])),
}


def decides_by_rounding(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether top-k may choose between similarities that differ only by rounding. Then both choices are right."""
    if getattr(layer, "activation", None) != "topk":
        return False
    window = layer.tlc_kernel or max(x.shape)
    of_one_pixel = min(window, x.shape[2]) * min(window, x.shape[3]) == 1  # there all similarities are 1 or -1
    return of_one_pixel or dtype == torch.float32


@st.composite
def images(draw) -> Tensor:
    """An image of one pixel or more, in any layout."""
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 40)), draw(st.integers(1, 50))
    layout = draw(st.sampled_from([None, torch.contiguous_format, torch.channels_last]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(batch, DIM, height + 1, width + 1, generator=generator, dtype=torch.float64)[..., 1:, 1:]
    return x if layout is None else x.contiguous(memory_format=layout)


def draw_parameters(layer: nn.Module) -> nn.Module:
    """The layer in float64 with random parameters that keep the scale of its input."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=1 / max(1, parameter[0].numel()) ** 0.5, generator=generator)
    return layer


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients at the image and at every parameter."""
    x = x.detach().requires_grad_()
    out = layer(x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.dtype)
    return out, *torch.autograd.grad(out, [x, *layer.parameters()], grad)


@pytest.mark.parametrize("kind", LAYERS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_training_follows_the_reference(kind, data):
    layer, x = draw_parameters(data.draw(LAYERS[kind])), data.draw(images())
    layer.train(data.draw(st.booleans()))
    assume(not decides_by_rounding(layer, x, x.dtype))
    with backend("torch"):
        got = gradients(layer, x)
    with backend("reference"):
        want = gradients(layer, x)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, TOLERANCE[torch.float64])


@pytest.fixture(params=["one strip", "many strips"])
def _strip_sizes(request, monkeypatch):
    if request.param == "many strips":
        monkeypatch.setattr(inference, "ELEMENTS_IN_STRIP", 1)
        monkeypatch.setattr(inference, "FEWEST_ROWS", 3)
        monkeypatch.setattr(dynamic_conv, "FILTERS_IN_STRIP", 1)
        monkeypatch.setattr(dynamic_conv, "ELEMENTS_PER_THREAD", 1 << 6)


@pytest.mark.usefixtures("_strip_sizes")
@pytest.mark.parametrize("kind", LAYERS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_inference_follows_the_reference(kind, data):
    layer, x = draw_parameters(data.draw(LAYERS[kind])).eval(), data.draw(images())
    with torch.no_grad():
        with backend("reference"):
            want = layer(x)
        for dtype, tolerance in TOLERANCE.items():
            assume(not decides_by_rounding(layer, x, dtype))
            with backend("torch"):
                got = layer.to(dtype)(x.to(dtype))
            assert got.dtype == dtype
            assert_close(got, want, tolerance)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_values_in_float32(path):
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case).float()
    image = torch.from_numpy(golden["input"]).float()
    with backend("torch"), torch.no_grad():
        evaluated, composed = network.eval()(image), network.train()(image)
    for output, name in ((evaluated, "output_eval_sample"), (composed, "output_train_sample")):
        values = torch.from_numpy(golden[name])
        assert (output.double().flatten()[::11] - values).abs().max() <= 2e-6 * (values.max() - values.min())


def test_autocast_falls_back():
    with backend("torch"), torch.autocast("cpu", torch.bfloat16):
        assert dispatch.select(GDFN(6).record(), torch.empty(1, 6, 8, 8)) is composed.BACKEND
