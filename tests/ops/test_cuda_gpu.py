"""The CUDA backend on a GPU: `make test-gpu`."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from dlgsanet import ops
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import choice, cuda, reference, triton, verdicts
from dlgsanet.ops.backends.cuda import channel_attention, feed_forward, first_use, local_attention
from dlgsanet.ops.backends.torch import planar
from dlgsanet.ops.records import map_tensors
from tests.archs.golden_network import golden_network
from tests.archs.test_golden import CASES
from tests.ops import calls
from tests.ops.test_cuda_benchmark import benchmark_gpu
from tests.ops.test_cuda_kernels import (
    TF32_TOLERANCE,
    TOLERANCE,
    expected_results,
    fused_arguments,
    plain_arguments,
    relative_error,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or bool(torch.version.hip),
        reason="no NVIDIA GPU is present: nothing was tested on one",
    ),
]

# (channels, groups, features, window): few, since each is compiled for every dtype.
LAYERS = [(48, 8, 12, 7), (90, 15, 22, 7), (11, 1, 30, 3), (12, 3, 5, 5), (18, 3, 4, 9)]


def small_network() -> DLGSANet:
    return DLGSANet(dim=48, groups=1, blocks=1, upsampler="pixelshuffledirect", upscale=2)


WITH_LAYERS = {name: dispatch.BACKENDS[name] for name in ("cuda", "triton", "torch", "composed")}


def random_shape(seed: int) -> tuple[int, ...]:
    """A shape of `test_cuda_kernels`; every seventh image is a single pixel wide or high."""
    rng = random.Random(seed)
    channels, groups, features, window = LAYERS[seed % len(LAYERS)]
    height, width = rng.randint(1, 130), rng.randint(1, 130)
    if seed % 7 == 0:
        height = 1
    if seed % 14 == 0:
        width = 1
    return rng.randint(1, 3), channels, groups, features, window, height, width


def on_gpu(arguments) -> list:
    return [a.cuda() if isinstance(a, Tensor) else a for a in arguments]


def results(operation: str, arguments) -> tuple[Tensor, ...]:
    """The output and all gradients by way of the operator, brought to the CPU."""
    tensors = [a.requires_grad_() for a in on_gpu(arguments) if isinstance(a, Tensor)]
    rest = [a for a in arguments if not isinstance(a, Tensor)]
    out = getattr(ops, operation)(*tensors, *rest)
    grads = torch.autograd.grad(out, tensors, tensors[0].detach().roll(1, dims=1))
    return tuple(t.detach().cpu() for t in (out, *grads))


IS_FASTER = choice.is_faster


@pytest.fixture(autouse=True)
def only_the_kernels(monkeypatch):
    """An operation that the kernels do not take is a failure, not a slower backend; float32 is float32.

    Where tensor cores may be used they are, whatever is faster.
    """
    monkeypatch.setattr(dispatch, "BACKENDS", {"cuda": "dlgsanet.ops.backends.cuda"})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(choice, "is_faster", lambda *call: True)


@pytest.mark.parametrize("seed", range(50))
def test_kernels_compute_the_definition(monkeypatch, seed):
    """With and without tensor cores."""
    shape, dtype = random_shape(seed), list(TOLERANCE)[seed % len(TOLERANCE)]
    monkeypatch.setattr(choice, "is_faster", lambda *call: seed // len(TOLERANCE) % 2 == 0)
    for operation, arguments_of in (
        ("dynamic_depthwise_conv", plain_arguments),
        ("fused_dynamic_depthwise_conv", fused_arguments),
    ):
        arguments = arguments_of(shape, dtype)
        error = relative_error(results(operation, arguments), expected_results(operation, arguments))
        assert error <= 2 * TOLERANCE[dtype], (operation, shape)  # sums of more pixels than in the emulator


def test_tf32_where_it_is_allowed(monkeypatch):
    arguments = fused_arguments((2, 90, 15, 22, 7, 60, 72), torch.float32)
    expected = expected_results("fused_dynamic_depthwise_conv", arguments)
    exact = results("fused_dynamic_depthwise_conv", arguments)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    rounded = results("fused_dynamic_depthwise_conv", arguments)
    out, _, *of_others = map(torch.equal, rounded, exact)  # the gradient of x only where its kernel has enough memory
    assert [out, *of_others] == [False] * 4
    assert relative_error(rounded, expected) <= TF32_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_faster_kernels_are_chosen_once(monkeypatch, tmp_path, dtype):
    monkeypatch.setattr(choice, "is_faster", IS_FASTER)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = fused_arguments((16, 48, 8, 12, 7, 48, 48), dtype)
    expected = results("fused_dynamic_depthwise_conv", arguments)
    on_tensor_cores = list(choice._chosen.values())  # forward, the gradients of z and weight and perhaps of x
    assert len(on_tensor_cores) in (2, 3)
    monkeypatch.setattr(choice, "milliseconds", lambda *call: pytest.fail("timed again"))
    monkeypatch.setattr(choice, "_chosen", {})
    assert all(map(torch.equal, results("fused_dynamic_depthwise_conv", arguments), expected))
    assert list(choice._chosen.values()) == on_tensor_cores


def test_the_same_numbers_every_time():
    arguments = fused_arguments((16, 48, 8, 12, 7, 48, 48), torch.bfloat16)
    first, second = (results("fused_dynamic_depthwise_conv", arguments) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_channels_last_and_misaligned_views():
    *tensors, window = on_gpu(fused_arguments((2, 48, 8, 12, 7, 33, 36), torch.float32))
    expected = ops.fused_dynamic_depthwise_conv(*tensors, window)
    strided = [t.to(memory_format=torch.channels_last) for t in tensors[:2]]
    assert torch.equal(ops.fused_dynamic_depthwise_conv(*strided, *tensors[2:], window), expected)
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors[:2]]
    assert torch.equal(ops.fused_dynamic_depthwise_conv(*shifted, *tensors[2:], window), expected)


@pytest.mark.parametrize("shape", LAYERS[:2], ids=str)
def test_first_use_agrees(shape):
    """Every kernel of the published networks, as `dlgsanet doctor` tries it."""
    for dtype in TOLERANCE:
        for path in cuda.PATHS:
            if cuda.no_tensor_cores(path, dtype, torch.device("cuda", 0), shape[0]):
                continue
            verdict = first_use.examine(first_use.use_of(path, dtype, shape, torch.device("cuda", 0)), cuda.PATHS[path])
            assert verdict.reason is None


def test_the_current_stream():
    arguments = on_gpu(fused_arguments((4, 48, 8, 12, 7, 256, 256), torch.float32))
    expected = ops.fused_dynamic_depthwise_conv(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(arguments[0])
        torch.cuda._sleep(50_000_000)
        late.copy_(arguments[0])  # a launch on another stream would read the zeros
        out = ops.fused_dynamic_depthwise_conv(late, *arguments[1:])
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_tensors():
    arguments = fused_arguments((1, 48, 8, 12, 7, 30, 30), torch.float32)
    on_second = [a.to("cuda:1") if isinstance(a, Tensor) else a for a in arguments]
    out = ops.fused_dynamic_depthwise_conv(*on_second)
    assert torch.equal(out.cpu(), ops.fused_dynamic_depthwise_conv(*on_gpu(arguments)).cpu())


def test_cuda_graphs_replay_forward_and_backward():
    *tensors, window = on_gpu(fused_arguments((2, 48, 8, 12, 7, 48, 48), torch.float32))
    tensors = [t.requires_grad_() for t in tensors]

    def step():
        out = ops.fused_dynamic_depthwise_conv(*tensors, window)
        return out, *torch.autograd.grad(out, tensors, tensors[0].detach())

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].normal_()
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_a_training_step_as_a_cuda_graph(monkeypatch):
    """A network trained by replays has the weights of one trained step by step."""
    monkeypatch.setattr(dispatch, "BACKENDS", WITH_LAYERS)
    torch.manual_seed(0)
    network = small_network().cuda().train()
    stepwise = copy.deepcopy(network)
    low, high = torch.rand(2, 3, 24, 24, device="cuda"), torch.rand(2, 3, 48, 48, device="cuda")

    def step_of(network):
        optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.9)  # Adam would show rounding in signs

        def step():
            optimizer.zero_grad()
            (network(low) - high).square().mean().backward()
            optimizer.step()

        return step

    replay = benchmark_gpu().captured(step_of(network))  # makes three steps
    step = step_of(stepwise)
    for _ in range(3):
        step()
    for _ in range(2):
        replay()
        step()
    for parameter, expected in zip(network.parameters(), stepwise.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-5)


def test_loading_within_a_capture_is_refused_with_what_to_do():
    arguments = on_gpu(fused_arguments((1, 14, 2, 13, 3, 20, 20), torch.float32))
    with pytest.raises(RuntimeError, match="once before capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ops.fused_dynamic_depthwise_conv(*arguments)


def test_compiled_for_every_size_at_once():
    compiled = torch.compile(lambda *a: torch.relu(ops.fused_dynamic_depthwise_conv(*a)), fullgraph=True, dynamic=True)
    for size in [(30, 31), (48, 20), (7, 64)]:
        *tensors, window = on_gpu(fused_arguments((2, 48, 8, 12, 7, *size), torch.float32))
        tensors = [t.requires_grad_() for t in tensors]
        out, expected = compiled(*tensors, window), torch.relu(ops.fused_dynamic_depthwise_conv(*tensors, window))
        torch.testing.assert_close(out, expected)
        for a, b in zip(*(torch.autograd.grad(t.sum(), tensors) for t in (out, expected)), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_takes_the_lower_dtype():
    *tensors, window = on_gpu(fused_arguments((2, 48, 8, 12, 7, 33, 36), torch.float32))
    lower = [t.bfloat16() for t in tensors[:2]]
    with torch.autocast("cuda", torch.bfloat16):
        out = ops.fused_dynamic_depthwise_conv(*tensors, window)
    assert torch.equal(out, ops.fused_dynamic_depthwise_conv(*lower, *tensors[2:], window))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_networks(path, monkeypatch):
    monkeypatch.setattr(dispatch, "BACKENDS", WITH_LAYERS)
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case).cuda()
    image = torch.from_numpy(golden["input"]).cuda().requires_grad_()
    with torch.no_grad():
        sample = network.eval()(image).cpu().flatten()[::11].numpy()
    assert np.abs(sample - golden["output_eval_sample"]).max() <= 1e-9 * sample.std()
    if "output_weight" in golden:
        (network.train()(image) * torch.from_numpy(golden["output_weight"]).cuda()).sum().backward()
        assert np.abs(image.grad.cpu().numpy() - golden["grad_input"]).max() <= 1e-9 * golden["grad_input"].std()
        for name, parameter in network.state_dict(keep_vars=True).items():
            assert parameter.grad.norm().item() == pytest.approx(case["grad_norms"][name], rel=1e-9)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_triton_kernels_agree(dtype):
    assert triton.examine(dtype, torch.device("cuda", 0), again=True).reason is None


@pytest.mark.parametrize("name", ["dynamic_local_attention", "channel_attention", "gated_feed_forward"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("size", [(1, 90, 131), (3, 17, 5)], ids=str)
def test_triton_layers_follow_the_reference(name, training, size):
    call = calls.one_of_each(size)[f"{name}, training" if training else name].map(Tensor.double)
    if training and name == "channel_attention":  # with other activations it has no gradients
        call = call._replace(record=call.record._replace(activation="relu"))
    with torch.set_grad_enabled(training):
        want = calls.results(reference.BACKEND, call)
        got = calls.results(triton.BACKEND, call.map(lambda t: t.float().cuda()))
    for g, w in zip(got, want, strict=True):
        assert (g.cpu().double() - w).abs().max() <= 1e-4 * w.abs().max()


@pytest.mark.parametrize("channels", [4, 48, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_projection_in_one_triton_kernel_follows_the_definition(channels, dtype):
    from dlgsanet.ops.backends.triton import steps

    x, weight, bias = (
        torch.randn(2, channels, 45, 64),
        torch.randn(3 * channels, channels, 1, 1),
        torch.randn(3 * channels),
    )
    tensors = [t.to(dtype) for t in (x, weight, bias)]
    want = planar.project(*(t.double() for t in tensors))
    got = steps._normalise_project(*(t.cuda() for t in tensors))
    assert (got.cpu().double() - want).abs().max() <= verdicts.TOLERANCE[dtype] * want.abs().max()


@pytest.mark.parametrize("channels", [4, 48, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gate_and_projection_in_one_triton_kernel_follow_the_definition(channels, dtype):
    from dlgsanet.ops.backends.triton import steps

    tensors = (
        torch.randn(2, channels, 45, 64),
        torch.randn(2, 4 * channels, 45, 64),
        torch.randn(4 * channels),
        torch.randn(4 * channels, 1, 3, 3),
        torch.randn(channels, 2 * channels, 1, 1),
    )
    tensors = [t.to(dtype) for t in tensors]
    got = steps._gate_project(*(t.cuda() for t in tensors))
    want = steps._gate_then_project(*(t.cuda().double() for t in tensors))
    assert (got.double() - want).abs().max() <= verdicts.TOLERANCE[dtype] * want.abs().max()


@pytest.mark.parametrize("channels", [6, 48, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_local_attention_in_one_triton_kernel_follows_the_definition(channels, dtype):
    from dlgsanet.ops.backends.triton import steps

    call = calls.local_attention((2, 45, 70), channels // 6, 6, max(1, channels // 4), window_size=7, seed=0)
    call = call.map(lambda t: t.to(dtype))
    (layer, x, _), (exact, wide, _) = call.map(Tensor.cuda), call.map(Tensor.double)
    got = steps._attend_locally(layer, x, *planar.fold_squeezed(layer))
    want = planar.local_attention(exact, wide, *planar.fold_squeezed(exact))
    most = max(verdicts.TOLERANCE[dtype], verdicts.TENSOR_CORE_TOLERANCE)
    assert (got.cpu().double() - want).abs().max() <= most * want.abs().max()


FEED_FORWARD = [feed_forward.EXACT, feed_forward.ROUNDED]


@pytest.mark.parametrize(("channels", "half"), [(48, 96), (90, 180), (4, 3), (96, 50), (61, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 61, 64), (1, 37, 33), (3, 1, 1)], ids=str)
def test_the_feed_forward_layer_in_one_kernel_follows_the_reference(channels, half, dtype, size):
    call = calls.feed_forward(size, channels, half, seed=1).map(lambda t: t.to(dtype))
    want = reference.BACKEND.infer(*call.map(Tensor.double)[:2])
    record, x, _ = call.map(Tensor.cuda)
    for kernel in FEED_FORWARD[dtype != torch.float32 :]:
        got, again = (feed_forward.gated_feed_forward(record, x, kernel) for _ in range(2))
        most = verdicts.TENSOR_CORE_TOLERANCE if kernel == feed_forward.ROUNDED else 2 * TOLERANCE[dtype]
        assert relative_error((got.cpu(),), (want,)) <= max(most, TOLERANCE[dtype])
        assert torch.equal(got, again)


@pytest.mark.parametrize(("channels", "half"), [(48, 96), (90, 180), (4, 3), (61, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 61, 64), (16, 48, 48), (3, 1, 1)], ids=str)
def test_the_gradients_of_the_feed_forward_layer_follow_the_reference(channels, half, dtype, size):
    """The same every time."""
    call = calls.feed_forward(size, channels, half, seed=1).map(lambda t: t.to(dtype))
    want = first_use._gradients(*call.map(Tensor.double)[:2], call.x.double())
    record, x, _ = call.map(Tensor.cuda)
    if not feed_forward.trains(channels, x.device):
        pytest.skip("it does not fit into the shared memory of this GPU")
    for kernel in FEED_FORWARD[dtype != torch.float32 :]:
        got, again = (feed_forward.gradients(record, x, x, kernel) for _ in range(2))
        most = verdicts.TENSOR_CORE_TOLERANCE if kernel == feed_forward.ROUNDED else 10 * TOLERANCE[dtype]
        assert relative_error([g.cpu() for g in got], want) <= max(most, TOLERANCE[dtype])
        assert all(map(torch.equal, got, again))


@pytest.mark.parametrize("lower", [False, True], ids=["float32", "autocast"])
def test_the_feed_forward_layer_is_chosen_for_training_and_captured(monkeypatch, tmp_path, lower):
    """The faster of the kernels and the next backend trains; a captured step gives the gradients of an eager one."""
    monkeypatch.setattr(dispatch, "BACKENDS", WITH_LAYERS)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layer, x = GDFN(48).cuda().record(), torch.randn(4, 48, 48, 48, device="cuda", requires_grad=True)

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=lower):
            out = ops.apply(layer, x)
        return list(torch.autograd.grad(out, [x, *layer], x.detach()))

    want = first_use._gradients(layer, x.detach(), x.detach())
    for faster in (IS_FASTER, lambda *call: False):
        monkeypatch.setattr(choice, "is_faster", faster)
        assert relative_error(step(), want) <= 3e-2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    assert all(map(torch.equal, got, step()))


def check_layer(layer, call, dtype):
    """Its kernels are not refused, follow the reference, and give the same every time."""
    with torch.no_grad():
        want = reference.BACKEND.infer(map_tensors(call.record, Tensor.double), call.x.double())
        record, x, _ = call.map(Tensor.cuda)
        assert cuda.BACKEND.refuses(record, x) is None
        for path in (layer.EXACT, layer.ROUNDED)[dtype != torch.float32 :]:
            (got,), (again,) = (cuda.PATHS[path](record, x, x) for _ in range(2))
            most = verdicts.TENSOR_CORE_TOLERANCE if path == layer.ROUNDED else 2 * TOLERANCE[dtype]
            assert relative_error((got.cpu(),), (want,)) <= max(most, TOLERANCE[dtype])
            assert torch.equal(got, again)


@pytest.mark.parametrize("heads", [(6, 8), (6, 15), (3, 5), (6, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "window"), [((2, 83, 101), 48), ((1, 20, 96), None), ((3, 1, 1), 48)], ids=str)
def test_channel_attention_in_cuda_kernels_follows_the_reference(heads, dtype, size, window):
    """In windows that overlap, with ragged tiles; the same every time."""
    call = calls.channel_attention(size, *heads, "relu", window, seed=0).map(lambda t: t.to(dtype))
    check_layer(channel_attention, call, dtype)


@pytest.mark.parametrize("layer", [(8, 6, 12, 7), (15, 6, 22, 7), (3, 2, 16, 5), (5, 4, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 61, 64), (1, 37, 33), (3, 1, 1)], ids=str)
def test_local_attention_in_cuda_kernels_follows_the_reference(layer, dtype, size):
    """With ragged tiles and rounds that are not full; the same every time."""
    call = calls.local_attention(size, *layer, seed=0).map(lambda t: t.to(dtype))
    check_layer(local_attention, call, dtype)


@pytest.mark.parametrize("lower", [False, True], ids=["float32", "autocast"])
def test_the_feed_forward_layer_is_chosen_and_captured(monkeypatch, tmp_path, lower):
    """The faster of the kernel and the next backend; where nothing is timed, the kernel is captured and replayed."""
    monkeypatch.setattr(dispatch, "BACKENDS", WITH_LAYERS)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layer, x = GDFN(48).cuda().eval(), torch.randn(1, 48, 90, 160, device="cuda")
    ops.freeze(layer)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=lower):
        want = reference.BACKEND.infer(layer.record(), x)
        for faster in (IS_FASTER, lambda *call: False):
            monkeypatch.setattr(choice, "is_faster", faster)
            torch.testing.assert_close(layer(x), want, rtol=2e-2, atol=2e-2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        x.normal_()
        graph.replay()
        assert torch.equal(out, layer(x))


@pytest.mark.parametrize("share", [4, 8, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_by_tiles_in_triton_kernels_follows_the_definition(share, dtype):
    from dlgsanet.ops.backends.triton import steps

    call = calls.channel_attention((2, 75, 110), 6, share, "relu", 48, seed=1).map(lambda t: t.to(dtype))
    with torch.no_grad():
        want = reference.BACKEND.infer(*call.map(Tensor.double)[:2])
        got, again = (steps._attend_by_tiles(*call.map(Tensor.cuda)[:2]) for _ in range(2))
    assert (got.cpu().double() - want).abs().max() <= verdicts.TOLERANCE[dtype] * want.abs().max()
    assert torch.equal(got, again)


def test_triton_gradients_are_the_same_every_time():
    call = calls.one_of_each((2, 40, 50))["gated_feed_forward, training"].map(Tensor.cuda)
    first, second = (calls.results(triton.BACKEND, call) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    program = (
        "import torch; from dlgsanet.ops import dispatch\n"
        "from tests.ops.test_cuda_gpu import fused_arguments, on_gpu, plain_arguments, results\n"
        "dispatch.BACKENDS = {'cuda': 'dlgsanet.ops.backends.cuda'}\n"
        "torch.backends.cudnn.allow_tf32 = False\n"
        "for shape in [(1, 12, 2, 12, 7, 27, 20), (1, 11, 1, 30, 3, 25, 17)]:\n"
        "    for dtype in torch.float32, torch.bfloat16:\n"
        "        results('fused_dynamic_depthwise_conv', fused_arguments(shape, dtype))\n"
        "        results('dynamic_depthwise_conv', plain_arguments(shape, dtype))\n"
        "from dlgsanet.ops.backends import cuda\n"
        "from dlgsanet.ops.records import FusedDynamicConv\n"
        "x, *rest = on_gpu(fused_arguments((1, 24, 4, 12, 7, 27, 20), torch.float32))\n"
        "for path in cuda.PATHS:\n"  # on FMA units, and on tensor cores
        "    if path.startswith('fused'):\n"
        "        cuda.PATHS[path](FusedDynamicConv(*rest), x, x)\n"
        "from tests.ops import calls\n"
        "for size in (1, 9, 17), (2, 8, 16):\n"
        "    gated = calls.feed_forward(size, 13, 21, seed=1).map(torch.Tensor.cuda)\n"
        "    attention = calls.channel_attention(size, 3, 5, 'relu', 9, seed=1).map(torch.Tensor.cuda)\n"
        "    local = calls.local_attention(size, 5, 2, 3, 7, seed=1).map(torch.Tensor.cuda)\n"
        "    for path in cuda.OF_LAYERS:\n"
        "        with torch.no_grad():\n"
        "            layer, x, _ = {'g': gated, 'c': attention, 'l': local}[path[0]]\n"
        "            cuda.PATHS[path](layer, x, x)\n"
        "print('ran to its end')\n"
    )
    done = subprocess.run(
        # Calls of the driver that fail inside PyTorch are no errors of the kernels.
        [sanitizer, "--tool", tool, "--report-api-errors=no", "--error-exitcode=9", sys.executable, "-c", program],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor an allocation with ends of its own
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode not in (0, 9) and "ran to its end" not in done.stdout:
        pytest.skip(f"compute-sanitizer does not run here: {(done.stdout + done.stderr).strip()[-300:]}")
    assert done.returncode == 0, done.stdout
