"""The `torch` backend in strips, on a CPU: random calls in any memory layout against the reference, golden values."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.archs.sparse_gsa import ACTIVATIONS
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import composed, reference
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.torch import dynamic_conv, inference
from dlgsanet.ops.records import ChannelAttention, DynamicConv, FusedDynamicConv, tensors_of
from tests.archs.golden_network import golden_network
from tests.archs.test_golden import CASES
from tests.ops import calls

# Relative to the largest value, or to the largest sum of magnitudes of convolutions, whose terms may cancel. In float64
# and float32 the order of additions differs; float16 and bfloat16 round the same sum once.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "cropped": lambda t: F.pad(t, (1, 2, 1, 0))[..., 1:, 1:-2],
}


@pytest.fixture(params=["one strip", "many strips"])
def _strip_sizes(request, monkeypatch):
    if request.param == "many strips":
        monkeypatch.setattr(inference, "ELEMENTS_IN_STRIP", 1)
        monkeypatch.setattr(inference, "FEWEST_ROWS", 3)
        monkeypatch.setattr(dynamic_conv, "FILTERS_IN_STRIP", 1)
        monkeypatch.setattr(dynamic_conv, "ELEMENTS_PER_THREAD", 1 << 6)


def decided_by_rounding(call: calls.Call) -> bool:
    """Whether rounding chooses among similarities, which are 1 or -1 over one pixel, and often equal to float32."""
    record, (_, _, height, width) = call.record, call.x.shape
    if not isinstance(record, ChannelAttention) or record.activation == "softmax":
        return False
    window = record.window or max(height, width)
    rounded = record.activation == "topk" and call.x.dtype != torch.float64
    return rounded or min(window, height) * min(window, width) == 1


@pytest.mark.usefixtures("_strip_sizes")
@pytest.mark.parametrize("name", [name for name in calls.RANDOM if not name.startswith("convolution")])
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(list(TOLERANCE)),
    activation=st.sampled_from(ACTIVATIONS),
    filters_given=st.booleans(),
)
def test_random_calls_follow_the_reference(name, data, layout, dtype, activation, filters_given):
    record, x, training = data.draw(calls.RANDOM[name])()
    x = LAYOUTS[layout](x.to(dtype))
    if isinstance(record, FusedDynamicConv):  # in training its weights are in float32
        wide = reference.accumulation_dtype(dtype)
        record = record._replace(z=LAYOUTS[layout](record.z.to(dtype)), weight=record.weight.to(wide))
        record = record._replace(bias=record.bias if record.bias is None else record.bias.to(wide))
        if filters_given:
            record = DynamicConv(reference.form_filters(record).to(dtype))
        call = calls.Call(record, x, training)
    else:
        dtype = torch.float64 if training else max(dtype, torch.float32, key=lambda t: t.itemsize)
        call = calls.Call(record, x, training).map(lambda t: t.to(dtype))
    if training and isinstance(record, ChannelAttention):
        call = call._replace(record=call.record._replace(activation=activation))
    assume(not decided_by_rounding(call))
    with torch.set_grad_enabled(training):
        got, want = calls.results(strips.BACKEND, call), calls.results(reference.BACKEND, call.map(Tensor.double))
    largest = [w.abs().max() for w in want]
    if isinstance(record, DynamicConv | FusedDynamicConv):
        largest = [s.max() for s in calls.results(reference.BACKEND, call.map(lambda t: t.double().abs()))]
    for g, t in zip(got, (call.x, *tensors_of(call.record)), strict=False):  # a layer's are all of one dtype
        assert g.dtype == t.dtype
    for g, w, most in zip(got, want, largest, strict=True):
        assert g.shape == w.shape
        assert (g.double() - w).abs().max() <= TOLERANCE[g.dtype] * most


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_values_in_float32(path, monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case).float()
    image = torch.from_numpy(golden["input"]).float()
    with torch.no_grad():
        evaluated, composed = network.eval()(image), network.train()(image)
    for output, name in ((evaluated, "output_eval_sample"), (composed, "output_train_sample")):
        values = torch.from_numpy(golden[name])
        assert (output.double().flatten()[::11] - values).abs().max() <= 2e-6 * (values.max() - values.min())


def test_autocast_falls_back(monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.select(GDFN(6).record(), torch.empty(1, 6, 8, 8)) is composed.BACKEND
