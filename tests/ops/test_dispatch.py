"""The choice of the backend of a call, by argument, by environment and by speed."""

import functools
import importlib

import pytest
import torch
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.mhdlsa import MHDLSA
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.errors import UserError
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import Backend, reference
from dlgsanet.ops.records import FusedDynamicConv, tensors_of
from tests.ops import calls

LAYERS = {
    "local": functools.partial(MHDLSA, 12, 3, 6),
    "global": functools.partial(SparseGSA, 12, 2),
    "gated": functools.partial(GDFN, 12),
}
X = torch.randn(1, 12, 11, 9, generator=torch.Generator().manual_seed(0))


def outcome(layer: nn.Module, x: Tensor, backend: str | None) -> list[Tensor]:
    """The result and all gradients."""
    x = x.clone().requires_grad_()
    out = ops.apply(layer.record(), x, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_a_backend_is_one_object(name):
    backend = importlib.import_module(dispatch.BACKENDS[name]).BACKEND
    assert isinstance(backend, Backend)
    assert backend.name == name


@pytest.mark.parametrize("backend", ["torch", "composed", "reference"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_argument_and_the_environment_choose_alike(layer, backend, monkeypatch):
    layer = LAYERS[layer]().double()
    by_argument = outcome(layer, X.double(), backend)
    monkeypatch.setenv("DLGSANET_BACKEND", backend)
    by_environment = outcome(layer, X.double(), None)
    # The argument applies only to the layer. The convolution in a composed layer uses the fastest backend.
    close = torch.testing.assert_close if backend == "composed" else torch.equal
    for a, b in zip(by_argument, by_environment, strict=True):
        assert close(a, b) is not False


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_convolutions_take_the_argument(backend):
    call = calls.fused_convolution((2, 9, 8), 2, share=3, inputs=4, window_size=5, with_bias=True, seed=0)
    record, x, _ = call.map(lambda t: t.requires_grad_())
    out = ops.fused_dynamic_depthwise_conv(x, *record, backend=backend)
    got = torch.autograd.grad(out, [x, *tensors_of(record)], x.detach().flip(0))
    for training, results in ((False, [out]), (True, got)):
        want = calls.results(dispatch.load(backend), call._replace(training=training).map(Tensor.detach))
        assert all(r.equal(w) for r, w in zip(results, want, strict=True))
    filters = reference.form_filters(record)
    plain = ops.dynamic_depthwise_conv(x, filters, backend=backend)
    torch.testing.assert_close(plain, out)
    assert all(g is not None for g in torch.autograd.grad(plain.sum(), [x, *tensors_of(record)]))


def test_a_backend_that_cannot_serve_is_named_with_its_reason():
    layer, x = GDFN(12).double(), X.double()
    with pytest.raises(ValueError, match=r"native .*float32"):
        ops.apply(layer.record(), x, backend="native")
    with pytest.raises(ValueError, match=r"cuda .*gated_feed_forward"):
        ops.apply(layer.record(), x, backend="cuda")
    with pytest.raises(ValueError, match="'metal'; choose from cuda, triton, native, torch, composed, reference"):
        ops.apply(layer.record(), x, backend="metal")
    with pytest.raises(ValueError, match="'metal'"):
        ops.dynamic_depthwise_conv(x, x.new_zeros(1, 2, 3, 3, 11, 9), backend="metal")


def test_a_wrong_environment_is_named(monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "metal")
    with pytest.raises(UserError, match=r"DLGSANET_BACKEND.*'metal'"):
        GDFN(12)(X)


def test_the_environment_leaves_out_one_backend(monkeypatch):
    everything = dispatch.candidates()
    monkeypatch.setenv("DLGSANET_BACKEND", "-triton")
    assert dispatch.candidates() == [name for name in everything if name != "triton"]
    layer = GDFN(12).record()
    monkeypatch.setenv("DLGSANET_BACKEND", "-torch")
    assert dispatch.explain(layer, X.double())[-1] == ("composed", None)
    for wrong in ("-metal", "-reference", "-"):  # without the last one there could be calls that none supports
        monkeypatch.setenv("DLGSANET_BACKEND", wrong)
        with pytest.raises(UserError, match=f"DLGSANET_BACKEND.*'{wrong}'.*-triton"):
            ops.apply(layer, X)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_reference_calls_no_other_backend(layer, monkeypatch):
    """With no dispatcher and no operator to be had, and its gradients are those of finite differences."""
    record = calls.Call(LAYERS[layer]().double().record(), X.double()[..., :4, :3])

    def forbidden(*args, **kwargs):
        raise AssertionError("the reference called the dispatcher")

    monkeypatch.setattr(dispatch, "select", forbidden)
    record, x, _ = record.map(lambda t: torch.randn_like(t).mul_(0.4).requires_grad_())

    def compute(x: Tensor, *tensors: Tensor) -> Tensor:
        left = iter(tensors)
        return reference.BACKEND.train(record._make(next(left) if isinstance(f, Tensor) else f for f in record), x)

    assert torch.autograd.gradcheck(compute, (x, *tensors_of(record)))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_traced_layer_is_one_graph_around_the_operator(layer):
    layer = LAYERS[layer]()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(X), layer(X))
    (graph,) = graphs
    assert ("dlgsanet.fused_dynamic_depthwise_conv" in str(graph.graph)) == isinstance(layer, MHDLSA)


def test_training_under_autocast_keeps_no_graph_of_the_taps():
    """On a CPU under autocast the layer is composed, around a convolution that forms its filters again."""
    layer, kept = MHDLSA(12, 7, 6), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(X)
    assert out.requires_grad
    assert max(kept) < 49 * X[0, 0].numel() * 2  # filters [G * K * K, H, W] and shifted images are larger


def test_the_reason_for_refusing_a_convolution_is_reported_per_backend():
    convolution = FusedDynamicConv(torch.zeros(1, 3, 5, 5), torch.zeros(9, 3), None, 3)
    answers = dispatch.explain(convolution, torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    assert [name for name, _ in answers] == ["cuda", "triton", "native", "torch"]
    assert "float32" in dict(answers)["native"]
    assert answers[-1][1] is None
