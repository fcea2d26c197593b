"""The Triton kernels: in Triton's interpreter against PyTorch in float64, and compiled for GPUs that are not here."""

import dataclasses
import itertools
import os
import platform
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import NO_LAYER, choice, reference, verdicts
from dlgsanet.ops.backends import triton as backend
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.backends.verdicts import TOLERANCE
from dlgsanet.ops.records import ChannelAttention, Conv3x3
from dlgsanet.ops.windows import window_starts
from tests.conftest import REPOSITORY
from tests.ops import calls
from tests.ops.conftest import CARD
from tests.ops.strict_interpreter import strict_interpreter
from tests.small_network import small_network

if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU: tests/ops/test_cuda_gpu.py", allow_module_level=True)
pytest.importorskip("triton")  # interpreted: tests/conftest.py

from dlgsanet.ops.backends.triton import steps, training
from dlgsanet.ops.backends.triton.tiles import TILE_COLUMNS, tiles_of


@pytest.fixture(autouse=True)
def _poison():
    """What a kernel does not write is NaN."""
    torch.use_deterministic_algorithms(True)
    with strict_interpreter():
        yield
    torch.use_deterministic_algorithms(False)


sizes = st.tuples(st.integers(1, 2), st.integers(3, 6), st.integers(1, 10), st.integers(1, 66))


@settings(deadline=None, max_examples=6)
@given(size=sizes, half=st.integers(1, 2), dtype=st.sampled_from(list(TOLERANCE)), seed=st.integers(0, 1000))
def test_steps_follow_the_definition(size, half, dtype, seed):
    random = calls.random_tensors(seed)
    batch, channels, height, width = size
    tensors = (
        random(batch, channels, height + 3, width)[:, :, 2 : height + 2],  # a strip of a taller image
        random(2 * half, channels, 1, 1) / channels**0.5,
        random(2 * half),
        random(2 * half, 1, 3, 3) / 3,
    )
    proj_out = random(channels, half, 1, 1) / half**0.5
    for name, more in (("features", ()), ("feed_forward", (proj_out,))):
        with torch.no_grad():
            got, want = (
                getattr(of, name)(*(t.to(dtype).to(wide) for t in (*tensors, *more)))
                for of, wide in ((steps.STEPS, dtype), (planar.STEPS, torch.float64))
            )
        assert close(got, want, 10 * TOLERANCE[dtype]), name
        assert got.isfinite().all()


TRAINED = {
    "gated_feed_forward": lambda size, share, seed: calls.feed_forward(size, 2 + share, 13 * share, seed),
    "channel_attention": lambda size, share, seed: calls.channel_attention(size, 3, 2 + share, "relu", None, seed),
    "dynamic_local_attention": lambda size, share, seed: calls.local_attention(size, 3, 2 + share, share, 3, seed),
}


def decided_by_rounding(call: calls.Call, lower: bool) -> bool:
    """Whether 16 bits may change the sign of a similarity near 0, which decides about its gradient."""
    select, near = reference.select_similarities, []

    def noted(similarities: Tensor, *how: Any) -> Tensor:
        near.append(bool((similarities.abs() < 1e-3).any()))
        return select(similarities, *how)

    with mock.patch.object(reference, "select_similarities", noted):
        reference.BACKEND.infer(*call.map(Tensor.double)[:2])
    return any(near) and (lower or call.x.dtype != torch.float32)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    "examples", [2, pytest.param(25, marks=pytest.mark.long)], ids=["few examples", "many examples"]
)
def test_gradients_follow_the_definition(name, examples):
    """Also under autocast. Programs with several tiles and with none, tiles that the image does not fill."""

    @settings(deadline=None, max_examples=examples)
    @given(
        size=st.tuples(st.integers(1, 2), st.integers(2, 9), st.integers(2, 20)),
        share=st.integers(1, 3),
        programs=st.integers(1, 9),
        dtype=st.sampled_from([t for t in TOLERANCE if t != torch.float64]),
        lower=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def check(size, share, programs, dtype, lower, seed):
        call = TRAINED[name](size, share, seed)._replace(training=True).map(lambda t: t.to(dtype))
        assume(not decided_by_rounding(call, lower))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "PROGRAMS", programs)
            patch.setattr(training, "SHARE", 16)
            patch.setattr(training, "PROJECTED", 512)
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                got, again = (calls.results(backend.BACKEND, call) for _ in range(2))
        want = calls.results(reference.BACKEND, call.map(Tensor.double))
        assert all(map(torch.equal, got, again))
        assert [g.dtype for g in got] == [dtype] * len(got)
        most = 10 * max(TOLERANCE[dtype], TOLERANCE[torch.bfloat16] if lower else 0)
        assert all(map(close, got, want, [most] * len(got))), [difference(g, w) for g, w in zip(got, want, strict=True)]

    check()


@pytest.mark.parametrize("change", ["activation", "width", "channels", "dtype", "pixels"])
def test_what_has_no_gradients_here_is_left_to_the_next_backend(change, monkeypatch):
    monkeypatch.setattr(backend, "DEVICES", ("cpu",))
    monkeypatch.setattr(backend, "refused", lambda dtype, device: None)
    share = training.WIDEST_HEAD + 1 if change == "width" else 2
    heads = training.WIDEST // 2 + 1 if change == "channels" else 1
    activation = "softmax" if change == "activation" else "relu"
    call = calls.channel_attention((1, 4, 5), heads, share, activation, None, seed=1)
    layer, x, _ = call.map(Tensor.double) if change == "dtype" else call
    x = x[..., :1, :1].expand(1, 2, 1 << 14, 1 << 15) if change == "pixels" else x  # q, k and v have 6 * 2^29 values
    assert "no gradients" in backend.BACKEND.refuses(layer, x, training=True)
    assert backend.BACKEND.refuses(layer, x) is None


@settings(deadline=None, max_examples=6)
@given(
    size=sizes,
    outputs=st.integers(1, 40),
    biased=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    lower=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_projection_in_one_kernel_follows_the_definition(size, outputs, biased, dtype, lower, seed):
    random = calls.random_tensors(seed)
    batch, channels, height, width = size
    x = random(batch, channels, height + 3, width)[:, :, 2 : height + 2].to(dtype)
    weight, bias = (random(outputs, channels, 1, 1) / channels**0.5).to(dtype), random(outputs).to(dtype)
    way = steps._normalise_then_project if dtype == torch.float64 else steps._normalise_project
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        got = way(x, weight, bias if biased else None)
    want = planar.project(x.double(), weight.double(), bias.double() if biased else None)
    hidden = torch.bfloat16 if lower and dtype != torch.float64 else dtype
    assert got.dtype == hidden
    assert close(got, want, 10 * max(TOLERANCE[dtype], TOLERANCE[hidden]))


@settings(deadline=None, max_examples=6)
@given(
    size=sizes,
    half=st.integers(1, 40),
    dtype=st.sampled_from([t for t in TOLERANCE if t != torch.float64]),
    lower=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gate_and_projection_in_one_kernel_follow_the_definition(size, half, dtype, lower, seed):
    """lower: the hidden tensor is in bfloat16, as under autocast."""
    random = calls.random_tensors(seed)
    batch, channels, height, width = size
    hidden = torch.bfloat16 if lower else dtype
    x = random(batch, channels, height + 3, width)[:, :, 2 : height + 2].to(dtype)
    features, weights = (
        random(batch, 2 * half, height, width).to(hidden),
        (random(2 * half), random(2 * half, 1, 3, 3) / 3),
    )
    tensors = *(t.to(dtype) for t in weights), (random(channels, half, 1, 1) / half**0.5).to(dtype)
    with torch.no_grad():
        got = steps._gate_project(x, features, *tensors)
        want = steps._gate_then_project(x.double(), features.double(), *(t.double() for t in tensors))
    assert got.dtype == dtype
    assert close(got, want, 10 * max(TOLERANCE[dtype], TOLERANCE[hidden]))


@settings(deadline=None, max_examples=6)
@given(
    size=st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 16, 17]), st.integers(1, 5), st.sampled_from([1, 5, 33])),
    outputs=st.sampled_from([1, 3, 65]),
    factor=st.integers(1, 3),
    biased=st.booleans(),
    centred=st.booleans(),
    to=st.sampled_from([None, "image", "channels"]),
    dtype=st.sampled_from([t for t in TOLERANCE if t != torch.float64]),
    lower=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_convolution_in_one_kernel_follows_the_definition(
    size, outputs, factor, biased, centred, to, dtype, lower, seed
):
    """factor: of a pixel shuffle; centred: a mean is subtracted; to: what is added; lower: under autocast."""
    random = calls.random_tensors(seed)
    batch, channels, height, width = size
    factor = 1 if to == "image" else factor
    x, added = (random(batch, c, height + 3, width)[:, :, 2 : height + 2].to(dtype) for c in (channels, outputs))
    layer = Conv3x3(
        (random(outputs * factor**2, channels, 3, 3) / (9 * channels) ** 0.5).to(dtype),
        random(outputs * factor**2).to(dtype) if biased else None,
        random(1, channels, 1, 1).to(dtype) if centred else None,
        factor,
        {None: None, "image": added, "channels": random(1, outputs, 1, 1).to(dtype)}[to],
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        got = steps.convolution(layer, x)
    want = reference.BACKEND.infer(*calls.Call(layer, x).map(Tensor.double)[:2])
    assert got.dtype == (torch.bfloat16 if lower else dtype)
    assert got.shape == want.shape
    assert close(got, want, 10 * TOLERANCE[got.dtype])
    if to == "image":
        with torch.no_grad():
            for result in (added, added.clone()):  # in place; the second is contiguous
                steps.add_convolution(layer._replace(to=None), x, result)
                assert close(result, want, 10 * TOLERANCE[dtype])


def test_a_network_takes_the_faster_convolution(new_card, monkeypatch):
    """The kernel or the next backend's convolution, also where memory is short."""
    torch.use_deterministic_algorithms(False)
    network, image = small_network(), torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        want = network(image)
        monkeypatch.setattr(backend, "DEVICES", ("cpu",))
        monkeypatch.setattr(backend, "refused", lambda dtype, device: None)
        names = {name: dispatch.BACKENDS[name] for name in ("triton", "reference")}
        monkeypatch.setattr(dispatch, "BACKENDS", names)
        only = dataclasses.replace(
            backend.BACKEND, dynamic_local_attention=None, channel_attention=None, gated_feed_forward=None
        )
        monkeypatch.setattr(dispatch, "load", {"triton": only, "reference": reference.BACKEND}.get)
        monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
        real, started = steps._convolve, []
        monkeypatch.setattr(steps, "_convolve", lambda *call: started.append(call) or real(*call))
        for times, convolutions in (([2.0, 1.0], 4), ([1.0, 2.0], 0)):
            monkeypatch.setattr(choice, "_chosen", {})
            monkeypatch.setattr(choice, "_kept_or_timed", lambda *call, times=times: times[0] <= times[1])
            started.clear()
            assert close(network(image), want.double(), 1e-4)
            assert len(started) == convolutions
            strips = torch.cat([part for _, part in network.by_rows(image)], 2)
            assert close(strips, want.double(), 1e-4)
            assert len(started) == (convolutions and 2 * convolutions + 1)  # shallow features are made again


@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_infinite_gate_stays_infinite():
    """A product has at least 16 terms; what fills it up must not be a channel."""
    features = torch.zeros(1, 4, 3, 3)
    features[:, 1] = torch.inf
    proj_out = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[..., None, None]
    arguments = torch.zeros(1, 2, 3, 3), features, torch.ones(4), torch.ones(4, 1, 3, 3), proj_out
    assert torch.equal(steps._gate_project(*arguments)[:, 1], torch.full((1, 3, 3), torch.inf))


SHARES = {3: 4, 5: 2, 7: 1}  # channels of a group by windows: in the interpreter a large window takes seconds


@settings(deadline=None, max_examples=6)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 5, 33])),
    groups=st.integers(1, 5),
    squeezed=st.integers(1, 17),
    window=st.sampled_from(list(SHARES)),
    dtype=st.sampled_from([t for t in TOLERANCE if t != torch.float64]),
    lower=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_local_attention_in_one_kernel_follows_the_definition(size, groups, squeezed, window, dtype, lower, seed):
    call = calls.local_attention(size, groups, SHARES[window], squeezed, window, seed).map(lambda t: t.to(dtype))
    lower = lower and dtype != torch.float16  # PyTorch joins no float16 and bfloat16 under autocast
    layer, x = call.record, torch.cat([call.x] * 3, 2)[:, :, size[1] : 2 * size[1]]  # a strip of a taller image
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        got = steps._attend_locally(layer, x, *planar.fold_squeezed(layer))
    layer, x, _ = call.map(Tensor.double)
    want = planar.local_attention(layer, x, *planar.fold_squeezed(layer))
    assert got.dtype == dtype
    assert close(got, want, 10 * TOLERANCE[torch.bfloat16 if lower else dtype])


@pytest.mark.parametrize("call", [{"window_size": 9}, {"squeezed": 32}, {"dtype": torch.float64}], ids=str)
def test_what_does_not_fit_into_registers_is_left_to_the_steps(call, monkeypatch):
    monkeypatch.setattr(choice, "is_faster", lambda *call: False)
    dtype = call.pop("dtype", torch.float32)
    layer, x, _ = calls.local_attention((1, 3, 4), 1, 2, **({"squeezed": 2, "window_size": 3, "seed": 0} | call)).map(
        lambda t: t.to(dtype)
    )
    monkeypatch.setattr(steps, "_attend_locally", lambda *call: pytest.fail("one kernel"))
    monkeypatch.setattr(steps, "project", planar.project)
    with torch.no_grad():
        got, want = (planar.dynamic_local_attention(layer, x, of) for of in (steps.STEPS, planar.STEPS))
    assert torch.equal(got, want)


def project(x: Tensor) -> Tensor:
    return steps.project(x, torch.ones(5, 4, 1, 1) / 4, None)


def feed_forward(x: Tensor) -> Tensor:
    return steps.feed_forward(
        x, torch.ones(6, 4, 1, 1) / 4, torch.ones(6), torch.ones(6, 1, 3, 3), torch.ones(4, 3, 1, 1)
    )


def attend_locally(x: Tensor) -> Tensor:
    layer = calls.local_attention((1, 1, 1), 2, 2, squeezed=1, window_size=3, seed=0).record
    return planar.dynamic_local_attention(layer, x, steps.STEPS)


def attention_in_windows(x: Tensor) -> Tensor:
    weights = torch.eye(4).repeat(3, 1)[..., None, None], torch.ones(12, 1, 3, 3), torch.ones(2, 1, 1)
    layer = ChannelAttention(torch.ones(4), torch.zeros(4), *weights, torch.ones(4, 4, 1, 1), "relu", 1, window=5)
    return steps.attend_in_windows(layer, x)


ONE_KERNEL = [("_normalise_project", "_normalise_then_project", project)]
ONE_KERNEL += [("_attend_locally", "_project_then_attend", attend_locally)]
ONE_KERNEL += [("_gate_project", "_gate_then_project", feed_forward)]
ONE_KERNEL += [("_attend_by_tiles", "_attend_by_windows", attention_in_windows)]


@pytest.mark.parametrize(("one_kernel", "two_steps", "call"), ONE_KERNEL)
def test_the_faster_way_is_taken(one_kernel, two_steps, call, monkeypatch):
    """One kernel (three for attention in windows), or the steps."""
    torch.use_deterministic_algorithms(False)
    x, timed, ran = torch.randn(1, 4, 6, 7), [1.0, 2.0], []
    for name in (one_kernel, two_steps):
        real = getattr(steps, name)
        monkeypatch.setattr(steps, name, lambda *a, name=name, real=real: ran.append(name) or real(*a))
    monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
    monkeypatch.setattr(choice, "_kept_or_timed", lambda kind, size, run, other: timed[0] <= timed[1])
    for times, chosen in (([2.0, 1.0], one_kernel), ([1.0, 2.0], two_steps)):
        timed[:] = times
        monkeypatch.setattr(choice, "_chosen", {})
        for _ in range(2):
            with torch.no_grad():
                call(x)
        assert ran[-2:] == [chosen] * 2


@pytest.mark.parametrize(("one_kernel", "two_steps", "call"), ONE_KERNEL)
@pytest.mark.parametrize("reason", ["shared memory", "differs"])
def test_one_kernel_that_fails_at_these_sizes_leaves_the_steps(
    one_kernel, two_steps, call, reason, new_card, monkeypatch, caplog
):
    """At first use on a card the kernels are tried at other sizes."""

    def faulty(*arguments):
        if reason == "differs":
            return getattr(steps, two_steps)(*arguments) * 1.1
        raise RuntimeError("out of resource: shared memory")

    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
    monkeypatch.setattr(choice, "milliseconds", lambda *call: pytest.fail("a faulty kernel is timed"))
    monkeypatch.setattr(steps, one_kernel, faulty)
    if call is not project:
        monkeypatch.setattr(steps, "project", steps._normalise_then_project)
    x = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        with choice.untimed():
            want = call(x)
        for _ in range(2):
            assert torch.equal(call(x), want)
    (message,) = [record.getMessage() for record in caplog.records]
    assert all(named in message for named in ("in windows" if call is attention_in_windows else "one kernel", reason))
    assert CARD in message
    assert not list(verdicts.cache_folder().glob("*.json"))


@settings(deadline=None, max_examples=3)
@given(
    height=st.integers(1, 10),
    width=st.integers(1, 24),
    window=st.integers(4, 9),
    rows=st.integers(1, 12),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
def test_windows_follow_the_definition(height, width, window, rows, dtype, seed):
    random = calls.random_tensors(seed)
    tensors = random(2), random(2), random(6, 2, 1, 1), random(6, 1, 3, 3), random(1, 1, 1), random(2, 2, 1, 1)
    x = random(1, 2, height, width)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(planar, "rows_of_strip", lambda x, floats: rows)
        got, want = (
            planar.channel_attention(
                ChannelAttention(*(t.to(dtype).to(wide) for t in tensors), "relu", 1, window), x.to(dtype).to(wide), of
            )
            for of, wide in ((steps.STEPS, dtype), (planar.STEPS, torch.float64))
        )
    assert close(got, want, 10 * TOLERANCE[dtype])


@settings(deadline=None, max_examples=4)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 8), st.integers(1, 20)),
    heads=st.integers(1, 2),
    of_head=st.integers(2, 9),
    window=st.integers(4, 12),
    rows=st.integers(2, 9),
    dtype=st.sampled_from([t for t in TOLERANCE if t != torch.float64]),
    lower=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention_by_tiles_follows_the_definition(size, heads, of_head, window, rows, dtype, lower, seed):
    """rows: of a strip; lower: hidden tensors are in bfloat16, as under autocast."""
    call = calls.channel_attention(size, heads, of_head, "relu", window, seed).map(lambda t: t.to(dtype))
    x = torch.cat([call.x, call.x], 2)[:, :, 1 : size[1] + 1]  # rows of a taller image
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "rows_of_strip", lambda x, floats: rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            got = steps._attend_by_tiles(call.record, x)
        want = reference.BACKEND.infer(*call._replace(x=x).map(Tensor.double)[:2])
    assert got.dtype == dtype
    assert close(got, want, 10 * max(TOLERANCE[dtype], TOLERANCE[torch.bfloat16] if lower else 0))


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    window=st.integers(8, 70),
    rows=st.integers(3, 70),
    highest=st.integers(3, 40),
)
def test_tiles_cover_the_image_and_know_their_windows(height, width, window, rows, highest):
    tiles = tiles_of(height, width, window, rows, highest, torch.device("cpu"))
    down, across = window_starts(height, window), window_starts(width, window)
    corners = [(y, x, y + min(height, window), x + min(width, window)) for y in down for x in across]
    assert tiles.windows == len(corners)
    covered = torch.zeros(height, width)
    members: list[list[int]] = [[] for _ in corners]
    for number, (top, bottom, left, right, *windows) in enumerate(tiles.tiles.tolist()):
        assert 0 < bottom - top <= highest
        assert 0 < right - left <= TILE_COLUMNS
        covered[top:bottom, left:right] += 1
        for n, (first, begin, last, end) in enumerate(corners):
            inside = first <= top and bottom <= last and begin <= left and right <= end
            apart = bottom <= first or last <= top or right <= begin or end <= left
            assert inside != apart
            assert inside == (n in windows)
            if inside:
                members[n].append(number)
        assert {windows.count(n) for n in windows} <= {1, 2, 4}
        assert len({windows.count(n) for n in windows}) == 1  # so their mean is that of the four
    assert (covered == 1).all()
    bounds = tiles.offsets.tolist()
    assert [tiles.members[a:b].tolist() for a, b in itertools.pairwise(bounds)] == members
    for strip in tiles.strips:
        within = tiles.tiles[strip.first : strip.first + strip.tiles]
        assert strip.bottom - strip.top <= rows
        assert (within[:, 0] >= strip.top).all()
        assert (within[:, 1] <= strip.bottom).all()
    assert sum(strip.tiles for strip in tiles.strips) == len(tiles.tiles)


def close(got: Tensor, want: Tensor, tolerance: float) -> bool:
    return difference(got, want) <= tolerance


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((got.double() - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", ["dynamic_local_attention", "channel_attention", "gated_feed_forward"])
def test_layers_follow_the_reference(name):
    call = calls.one_of_each((1, 4, 5))[name].map(Tensor.double)
    with torch.no_grad():
        got, want = calls.results(backend.BACKEND, call), calls.results(reference.BACKEND, call)
    assert all(map(close, got, want, [1e-10] * len(got)))


def test_autocast_keeps_hidden_tensors_in_its_dtype():
    call = calls.one_of_each((1, 4, 5))["gated_feed_forward, training"]
    made = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: made.append(t) or t, lambda t: t),
    ):
        out = backend.BACKEND.train(call.record, call.x.requires_grad_())
    assert out.dtype == torch.float32
    images = [t for t in made if t.dim() == 4 and t.shape[2] in (4, 5) and t.data_ptr() != call.x.data_ptr()]
    assert images
    assert all(t.dtype == torch.bfloat16 for t in images)
    want = reference.BACKEND.train(call.record, call.x)
    assert close(out.detach(), want.detach().double(), 0.05)


def test_devices_without_kernels():
    call = calls.one_of_each((1, 4, 5))["gated_feed_forward"]
    assert backend.BACKEND.refuses(call.record, call.x) == NO_LAYER  # which is not reported


def test_wide_heads_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(steps, "kernels", None)
    layer = calls.one_of_each((1, 4, 5))["channel_attention"].record
    layer = layer._replace(activation="relu", temperature=torch.ones(1, 1, 1))
    qk = torch.randn(1, 2 * (steps.WIDEST_HEAD + 1), 3)
    assert torch.equal(steps.attention(layer, qk), planar.STEPS.attention(layer, qk))


@pytest.mark.parametrize("change", ["activation", "width", "dtype"])
def test_what_the_tiles_have_no_kernels_for_is_left_to_the_steps(change, monkeypatch):
    monkeypatch.setattr(steps, "_faster", lambda *call: pytest.fail("tiles"))
    monkeypatch.setattr(steps, "_attend_by_windows", lambda layer, x: x)
    share = steps.WIDEST_HEAD + 1 if change == "width" else 2
    activation = "softmax" if change == "activation" else "relu"
    layer, x, _ = calls.channel_attention((1, 4, 5), 1, share, activation, 4, seed=1)
    with torch.no_grad():
        steps.attend_in_windows(layer, x.double() if change == "dtype" else x)


def test_nan_is_kept():
    qk = torch.full((1, 4, 3), torch.nan)
    layer = calls.one_of_each((1, 4, 5))["channel_attention"].record._replace(temperature=torch.ones(1, 1, 1))
    assert steps.attention(layer._replace(activation="relu"), qk).isnan().all()


# Numbers of compiled kernels by dtypes: those without gradients, and those of training.
COMPILED = {"kernels": {"fp32": 26, "bf16": 17, "fp16": 17, "fp64": 6}}
COMPILED |= {"gradient_kernels": {"fp32": 31, "bf16": 18, "fp16": 18}}


def on_architectures(*architectures, short):
    """A test for every architecture, module and dtype; those that are not in `short` are long."""
    cases = [
        (module, architecture, dtype)
        for module, numbers in COMPILED.items()
        for architecture in architectures
        for dtype in ("fp32", "bf16", "fp16", "fp64")
        if dtype in numbers
    ]
    cases = [pytest.param(*case, marks=() if case in short else pytest.mark.long) for case in cases]
    return pytest.mark.parametrize(("module", "architecture", "dtype"), cases)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler is for x86-64")
@on_architectures(
    80, 90, 120, short=[("kernels", 90, "fp32"), ("kernels", 90, "bf16"), ("gradient_kernels", 90, "fp32")]
)
def test_kernels_compile_within_a_budget_of_registers(module, architecture, dtype):
    found = compiled(module, architecture, dtype)
    assert len(found) == COMPILED[module][dtype]
    for name, registers, stack, _ in found:
        # 128 threads with 168 registers: three programs on a multiprocessor; with 224 or 255: two.
        wide = name in ("attend_locally", "convolve", "project") or name.endswith("backward")
        assert int(registers) <= (255 if wide else 224 if dtype == "fp64" else 168), name
        # Products of three in TF32, and in float32 without tensor cores one that forms filters, need some more. So do
        # threads of 16 warps that filter two planes: they have 128 registers.
        more = (name in ("attend_locally", "convolve") and dtype == "fp32") or name == "gate_project"
        most = 80 if more else 16 if dtype == "fp64" or "fold" in name else 0
        if module == "gradient_kernels" and architecture != 90:  # products read all factors from registers
            most = 640
        elif name in ("project", "squeeze_project_backward", "gate_project_backward"):  # with two products, or filters
            most = 64
        assert int(stack) <= most, name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="wheels of Triton for x86-64 alone are known to have it")
@on_architectures(
    "gfx90a", "gfx942", "gfx1100", short=[("kernels", "gfx942", "fp32"), ("gradient_kernels", "gfx1100", "bf16")]
)
def test_kernels_compile_for_amd_gpus_and_fit_their_shared_memory(module, architecture, dtype):
    found = compiled(module, architecture, dtype)
    assert len(found) == COMPILED[module]["bf16" if dtype == "fp32" else dtype]  # there is no TF32
    assert all(int(shared) <= 64 << 10 for *_, shared in found)


def compiled(module: str, architecture: int | str, dtype: str) -> list[list[str]]:
    """What `tests.ops.compile_triton` prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.compile_triton", str(architecture), dtype, module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]
