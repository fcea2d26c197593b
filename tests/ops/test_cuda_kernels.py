"""The CUDA kernels without a GPU: their source runs in the emulator and is compared with float64."""

import contextlib
import dataclasses
import faulthandler
import functools
import itertools
import json
import math
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dlgsanet.archs.feed_forward import GDFN
from dlgsanet.ops import dispatch
from dlgsanet.ops import tf32 as tf32_settings
from dlgsanet.ops.backends import Backend, composed, cuda, reference
from dlgsanet.ops.backends.cuda import dynamic_conv, first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv
from tests.archs.golden_network import golden_network
from tests.archs.test_golden import CASES
from tests.conftest import REPOSITORY
from tests.ops.emulator import COMPILER, ORDERS, EmulatedModule, LastBlocks

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")

# Largest error over the largest value: of sums formed in float32 (or float64), then rounded to the dtype.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# (batch, channels, groups, features, window, height, width)
PUBLISHED = [(1, 12, 2, 12, 7, 27, 20), (1, 6, 1, 22, 7, 9, 35)]  # as in Tiny and Light, and in Large
SHAPES = [
    *PUBLISHED,
    (1, 6, 1, 12, 7, 50, 21),  # ragged tiles of every kernel
    (2, 4, 2, 30, 5, 5, 3),  # an image smaller than the window, two passes over the features
    (1, 11, 1, 3, 9, 30, 20),  # two parts of a group's channels, of different size
    (3, 6, 3, 5, 3, 1, 1),
    (1, 3, 3, 4, 5, 8, 18),  # a channel a group
    (1, 17, 1, 9, 3, 26, 7),
]
ENOUGH_BLOCKS = dynamic_conv.ENOUGH_BLOCKS
MAP_NORESERVE = 0x4000  # Linux's; the module mmap does not name it in every Python
TF32_TOLERANCE = 5e-4  # of filters formed from products of 11 bits
TWO_ROUNDS = (2, 10, 5, 3, 7, 9, 20)  # of groups in the forward pass, the second of which has one more
# Those with fewer than four groups, and rows that are no whole quads, have only their gradients formed there.
ON_TENSOR_CORES = [
    *PUBLISHED,
    TWO_ROUNDS,
    (1, 24, 4, 12, 7, 17, 4),
    (3, 6, 3, 5, 3, 1, 1),
    (1, 10, 2, 24, 5, 17, 20),
    (1, 8, 1, 9, 3, 26, 7),
]
FORWARD_ON_TENSOR_CORES = [
    TWO_ROUNDS,
    (1, 30, 5, 22, 7, 9, 20),  # as in Large
    (1, 15, 5, 16, 5, 1, 36),
    (2, 4, 4, 23, 3, 11, 4),
    (1, 54, 9, 12, 7, 8, 16),
]
# Two groups, parts of them, passes over the features, and tiles.
WITH_EVERY_BARRIER = (1, 24, 2, 26, 3, 25, 17)


@pytest.fixture
def emulate(monkeypatch) -> Iterator[Callable[..., None]]:
    """Run launches of `cuda` in the emulator, with an order of the threads, and without a barrier ("file:line")."""

    def use(
        order: str = "ascending",
        without_barrier: str = "",
        tf32: bool = False,
        enough_blocks: int = ENOUGH_BLOCKS,
        capability: tuple[int, int] = (8, 6),
    ) -> None:
        dynamic_conv.plan.cache_clear()
        monkeypatch.setattr(cuda_modules, "load", lambda i, device: EmulatedModule(i, order, without_barrier))
        monkeypatch.setattr(dynamic_conv, "ENOUGH_BLOCKS", enough_blocks)
        monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: 99 << 10)
        monkeypatch.setattr(cuda_modules, "capability", lambda device: capability)
        monkeypatch.setattr(tf32_settings, "allowed_in_convolutions", lambda: tf32)
        monkeypatch.setattr(first_use, "refused", lambda use, run: None)

    yield use
    dynamic_conv.plan.cache_clear()


def normal(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64).to(dtype)


def plain_arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch, channels, groups, _, window, height, width = shape
    filters = normal(batch, groups, window, window, height, width, dtype=dtype)
    return normal(batch, channels, height, width, dtype=dtype), filters


def fused_arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    batch, channels, groups, features, window, height, width = shape
    master = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = groups * window**2
    return (
        normal(batch, channels, height, width, dtype=dtype),
        normal(batch, features, height, width, dtype=dtype),
        normal(outputs, features, dtype=master) / features**0.5,
        normal(outputs, dtype=master),
        window,
    )


RECORDS = {"dynamic_depthwise_conv": DynamicConv, "fused_dynamic_depthwise_conv": FusedDynamicConv}


def results(
    backend: Backend, operation: str, arguments, layout: Callable[[Tensor], Tensor] = lambda t: t
) -> tuple[Tensor, ...]:
    """The output and all gradients, for a gradient of the output that is not constant."""
    arguments = [layout(a) if isinstance(a, Tensor) else a for a in arguments]
    x, grad = arguments[0], layout(arguments[0].roll(1, dims=1))
    convolution = RECORDS[operation](*arguments[1:])
    return backend.convolve(convolution, x), *backend.convolve_backward(convolution, x, grad)


def expected_results(operation: str, arguments) -> tuple[Tensor, ...]:
    return results(reference.BACKEND, operation, arguments, Tensor.double)


def relative_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest over all tensors; infinite if a value is not a number."""
    errors = [(a.double() - e).abs().max() / e.abs().max() for a, e in zip(actual, expected, strict=True)]
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())


OPERATIONS = {"dynamic_depthwise_conv": plain_arguments, "fused_dynamic_depthwise_conv": fused_arguments}


def check_definition(emulate, operation, shape, dtype, **how):
    """Without tensor cores."""
    arguments = OPERATIONS[operation](shape, dtype)
    expected = expected_results(operation, arguments)
    for order in ORDERS:
        emulate(order, capability=(7, 5), **how)
        assert relative_error(results(cuda.BACKEND, operation, arguments), expected) <= TOLERANCE[dtype], order


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_compute_the_definition(emulate, operation, shape):
    check_definition(emulate, operation, shape, torch.float32)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[3], PUBLISHED[1]], ids=str)
def test_every_dtype(emulate, operation, shape, dtype):
    check_definition(emulate, operation, shape, dtype)


def strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize("layout", [strided, channels_last])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_memory_layout(emulate, operation, layout):
    """The emulator accepts only contiguous memory."""
    emulate()
    arguments = OPERATIONS[operation]((2, 6, 2, 4, 3, 9, 8), torch.float32)
    actual = results(cuda.BACKEND, operation, arguments, layout)
    for a, expected in zip(actual, results(cuda.BACKEND, operation, arguments), strict=True):
        assert torch.equal(a, expected)


@pytest.mark.parametrize("tf32", [False, True])
def test_without_a_bias(emulate, tf32):
    x, z, weight, _, window = fused_arguments(TWO_ROUNDS, torch.float32)
    arguments = x, z, weight, None, window
    emulate(tf32=tf32)
    operation = "fused_dynamic_depthwise_conv"
    error = relative_error(results(cuda.BACKEND, operation, arguments), expected_results(operation, arguments))
    assert error <= (TF32_TOLERANCE if tf32 else TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("groups", "enough_blocks"), [(2, 1), (5, 8)], ids=["one slice", "three slices, the last with one group of two"]
)
def test_slices_of_several_groups(emulate, groups, enough_blocks):
    """As in images of more tiles than a GPU needs."""
    shape = (1, 2 * groups, groups, 5, 3, 25, 17)
    check_definition(emulate, "fused_dynamic_depthwise_conv", shape, torch.float32, enough_blocks=enough_blocks)


@pytest.mark.parametrize("shape", ON_TENSOR_CORES, ids=str)
def test_tensor_cores(emulate, shape):
    check_tensor_cores(emulate, shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tensor_cores_in_16_bits(emulate, dtype):
    check_tensor_cores(emulate, PUBLISHED[1], dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ON_TENSOR_CORES, ids=str)
def test_tensor_cores_in_16_bits_for_every_size(emulate, shape, dtype):
    check_tensor_cores(emulate, shape, dtype)


def check_tensor_cores(emulate, shape, dtype, without_barrier=""):
    operation = "fused_dynamic_depthwise_conv"
    arguments = fused_arguments(shape, dtype)
    expected = expected_results(operation, arguments)
    for order, enough_blocks in zip(ORDERS, (1, ENOUGH_BLOCKS, 1), strict=True):
        emulate(order, without_barrier, tf32=True, enough_blocks=enough_blocks)
        on_tensor_cores = results(cuda.BACKEND, operation, arguments)
        assert relative_error(on_tensor_cores, expected) <= max(TOLERANCE[dtype], TF32_TOLERANCE), order
        if dtype != torch.float32:
            continue
        emulate(order, without_barrier, enough_blocks=enough_blocks)
        exact = results(cuda.BACKEND, operation, arguments)
        assert relative_error(exact, expected) <= TOLERANCE[dtype], order
        emulate(order, without_barrier, enough_blocks=enough_blocks, capability=(7, 5))
        others = results(cuda.BACKEND, operation, arguments)
        forward_too = shape[2] >= 4 and shape[-1] % 4 == 0
        of_x_too = shape[3] <= 12  # with more features, the emulated card has too little shared memory
        for out in on_tensor_cores, exact:
            assert list(map(torch.equal, out, others)) == [not forward_too, not of_x_too, False, False, False]


def check_forward(emulate, shape, dtype, capability, orders=ORDERS, without_barrier=""):
    """On tensor cores, with factors as rounded as a dtype allows, and exact ones."""
    x, *rest = fused_arguments(shape, dtype)
    convolution = FusedDynamicConv(*rest)
    (expected, *_) = expected_results("fused_dynamic_depthwise_conv", (x, *rest))
    for order in orders:
        emulate(order, without_barrier, capability=capability)
        for path in (cuda.FORWARD_MMA, cuda.FORWARD_EXACT):
            if path == cuda.FORWARD_EXACT and dtype != torch.float32:
                continue
            (out,) = cuda.PATHS[path](convolution, x, x)
            most = max(TOLERANCE[dtype], TF32_TOLERANCE if path == cuda.FORWARD_MMA else 0)
            assert relative_error((out,), (expected,)) <= most, (order, path)


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(torch.float32, (8, 0)), (torch.float16, (8, 0)), (torch.bfloat16, (9, 0)), (torch.bfloat16, (8, 6))],
    ids=str,
)
def test_the_forward_pass_on_tensor_cores(emulate, dtype, capability):
    """Filters are applied by products in 16 bits on the faster tensor cores."""
    check_forward(emulate, TWO_ROUNDS, dtype, capability)
    check_forward(emulate, FORWARD_ON_TENSOR_CORES[1], dtype, capability, orders=["shuffled"])


@pytest.mark.long
@pytest.mark.parametrize("capability", [(8, 0), (8, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", FORWARD_ON_TENSOR_CORES, ids=str)
def test_the_forward_pass_on_tensor_cores_for_every_size(emulate, shape, dtype, capability):
    check_forward(emulate, shape, dtype, capability)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 9},
        {"features": 24},
        {"channels": 35},  # seven share a filter
        {"groups": 2, "channels": 4},
        {"width": 18},
        {},
    ],
    ids=str,
)
def test_which_sizes_have_their_forward_pass_on_tensor_cores(emulate, change):
    emulate(tf32=True)
    sizes = {"channels": 10, "groups": 5, "features": 3, "window": 7, "height": 5, "width": 20} | change
    x, *rest = fused_arguments((1, *sizes.values()), torch.float32)
    assert cuda._on_tensor_cores(cuda.FORWARD_MMA, FusedDynamicConv(*rest), x) == (not change)
    assert not cuda._on_tensor_cores(cuda.FORWARD_MMA, FusedDynamicConv(*rest), misaligned(x))


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers at an address from which a quad cannot be loaded at once."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"window": 11}, "its windows are 3, 5, 7, 9 wide, not 11"),
        ({"dtype": torch.float8_e5m2}, "it has no kernels for torch.float8_e5m2"),
        ({"other_device": "cpu"}, "the tensors are on several devices"),
        ({"device": "cpu"}, "it needs an NVIDIA GPU"),
        ({"batch": 0}, "a tensor is empty"),
        ({"features": 0}, "a tensor is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernels_do_not_take_is_refused_with_the_reason(changed, word):
    call = {"batch": 1, "features": 2, "window": 3, "dtype": torch.float32, "device": "cuda"} | changed
    device, dtype, window = call["device"], call["dtype"], call["window"]
    with FakeTensorMode():  # tensors that no GPU has to hold
        x = torch.empty(call["batch"], 4, 5, 6, dtype=dtype, device=device)
        z = torch.empty(call["batch"], call["features"], 5, 6, dtype=dtype, device=call.get("other_device", device))
        weight = torch.empty(2 * window**2, call["features"], device=device)
        filters = torch.empty(call["batch"], 2, window, window, 5, 6, dtype=dtype, device=z.device)
        for training in (False, True):
            assert cuda.BACKEND.refuses(FusedDynamicConv(z, weight, None, window), x, training) == word
            if call["features"]:
                assert cuda.BACKEND.refuses(DynamicConv(filters), x, training) == word


def test_a_gpu_without_its_kernels_is_reported_once(caplog):
    """As a warning, which Python prints whether or not logging was set up."""
    with FakeTensorMode():
        x, filters = torch.empty(1, 4, 9, 9, device="cuda"), torch.empty(1, 2, 11, 11, 9, 9, device="cuda")
        assert [dispatch.select(DynamicConv(filters), x) for _ in range(2)] == [reference.BACKEND] * 2
        dispatch.select(GDFN(4).record(), x)  # which has no CUDA kernels
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = (text for text in warnings if "windows are" in text)
    assert "conv on cuda: reference backend (cuda: its windows are 3, 5, 7, 9 wide, not 11" in warning


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has only the older setting")
def test_tf32_is_used_as_pytorch_is_set():
    """In a process of its own: whoever mixes the switches cannot put them back as they were."""
    code = """if True:
        from torch.backends import cudnn
        from dlgsanet.ops import tf32
        for old in (True, False):
            cudnn.allow_tf32 = old
            assert tf32.allowed_in_convolutions() == old
        for new in ("tf32", "ieee"):
            cudnn.conv.fp32_precision = new
            assert tf32.allowed_in_convolutions() == (new == "tf32")
        cudnn.conv.fp32_precision = "none"  # as the setting above it
        cudnn.fp32_precision = "ieee"
        assert not tf32.allowed_in_convolutions()
        print("done")
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.stdout == "done\n", run.stderr


@pytest.mark.long
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", dynamic_conv.WINDOW_SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_window(emulate, operation, shape, window, dtype):
    check_definition(emulate, operation, (*shape[:4], window, *shape[5:]), dtype)


LAYERS = ("gated", "channel_attention", "local_attention")  # beginnings of the names of their sources


def barriers(layer: str = "") -> list[str]:
    """Places "file:line" of every barrier in the kernels of convolutions, or of a layer."""
    return [
        f"{path.name}:{number}"
        for path in sorted(cuda_modules.KERNELS.glob("*.*"))
        if (path.name.startswith(layer) if layer else not path.name.startswith(LAYERS))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "__syncthreads()" in line
    ]


@pytest.mark.parametrize("place", barriers())
def test_a_missing_barrier_is_caught(emulate, place):
    """The tests above fail without this barrier."""
    if place.startswith("fused_forward_mma."):
        with pytest.raises(AssertionError):
            check_forward(emulate, TWO_ROUNDS, torch.float32, (8, 6), without_barrier=place)
        return
    if "_mma." in place:
        with pytest.raises(AssertionError):
            check_tensor_cores(emulate, PUBLISHED[0], torch.float32, without_barrier=place)
        return
    for operation, arguments_of in OPERATIONS.items():
        arguments = arguments_of(WITH_EVERY_BARRIER, torch.float32)
        expected = expected_results(operation, arguments)
        for order, enough_blocks in itertools.product(ORDERS, (ENOUGH_BLOCKS, 1)):  # a slice of one group, and of both
            emulate(order, without_barrier=place, enough_blocks=enough_blocks)
            if relative_error(results(cuda.BACKEND, operation, arguments), expected) > TOLERANCE[torch.float32]:
                return
    pytest.fail("no result changed")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_misaligned_access_is_caught(monkeypatch, emulate):
    """Loading four pixels at once from a misaligned address ends the process; here a forked one."""
    emulate()
    monkeypatch.setattr(dynamic_conv, "_vectorized", lambda *images: True)
    arguments = fused_arguments((1, 6, 1, 5, 3, 6, 7), torch.float32)
    child = os.fork()
    if not child:
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            cuda.BACKEND.convolve(FusedDynamicConv(*arguments[1:]), arguments[0])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGILL


CPU = torch.device("cpu")


class Driver:
    """Replaces CuPy's access to the driver: kernels that are loaded and launched for "cpu" run in the emulator."""

    def __init__(self, monkeypatch):
        cupy = pytest.importorskip("cupy", reason="launching kernels needs CuPy")
        self.capturing, self.allowed, self.kernels = False, {}, []
        monkeypatch.setattr(cupy.cuda.function, "Module", lambda: self)
        monkeypatch.setattr(cupy.cuda.driver, "funcSetAttribute", self.set_attribute)
        monkeypatch.setattr(cupy.cuda.driver, "launchKernel", self.launch)
        self.of_others = SimpleNamespace(index=7)
        self.device, self.current = self.of_others, self.of_others.index
        monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: self.device.index)
        monkeypatch.setattr(cupy.cuda.runtime, "setDevice", self.set_device)
        monkeypatch.setattr(torch.cuda, "device", self.on_device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 777, raising=False)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(cuda_modules, "cached_cubin", lambda instance, architecture: (instance, architecture))
        monkeypatch.setattr(cuda_modules, "load", functools.cache(cuda_modules.Module))

    @contextlib.contextmanager
    def on_device(self, device):
        self.current = device.index
        yield
        self.current = self.of_others.index
        assert self.device is self.of_others  # CuPy's device is again what it was

    def set_device(self, index):
        assert index in (CPU.index, self.of_others.index)
        self.device = self.of_others if index == self.of_others.index else CPU

    def load(self, cubin):
        instance, architecture = cubin
        assert self.device == CPU
        assert architecture == "sm_86"
        self.loading = EmulatedModule(instance, "ascending")

    def get_function(self, name):
        assert not self.capturing
        self.kernels.append((self.loading, name))
        return SimpleNamespace(ptr=len(self.kernels))

    def launch(self, pointer, *call):
        *sizes, shared_bytes, stream, addresses, extra = call
        blocks, threads = sizes[0], sizes[3]
        assert sizes == [blocks, 1, 1, threads, 1, 1]
        assert self.device == CPU
        assert (stream, extra) == (777, 0)
        assert shared_bytes <= max(48 << 10, self.allowed.get(pointer, 0))
        module, name = self.kernels[pointer - 1]
        module.run_addresses(name, 0, blocks, threads, shared_bytes, addresses)

    def set_attribute(self, pointer, attribute, value):
        assert (self.device, attribute) == (CPU, 8)  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.allowed[pointer] = value


@pytest.mark.parametrize("operation", OPERATIONS)
def test_modules_launch_what_the_driver_takes(monkeypatch, emulate, operation):
    emulate()
    driver = Driver(monkeypatch)
    arguments = OPERATIONS[operation]((1, 24, 4, 22, 7, 9, 36), torch.float32)
    error = relative_error(results(cuda.BACKEND, operation, arguments), expected_results(operation, arguments))
    assert error <= TOLERANCE[torch.float32]
    assert bool(driver.allowed) == operation.startswith("fused")
    driver.capturing = True  # loaded kernels can be captured, and no kernel is loaded during a capture
    results(cuda.BACKEND, operation, arguments)
    with pytest.raises(RuntimeError, match="once before capturing"):
        results(cuda.BACKEND, operation, OPERATIONS[operation]((1, 24, 4, 22, 3, 9, 36), torch.float32))


def sparse(*size: int, dtype: torch.dtype) -> Tensor:
    """Zeros that use memory only where they are accessed."""
    nbytes = math.prod(size) * dtype.itemsize
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=dtype).view(size)


def sparse_image(channels: int, height: int, width: int, corner: int) -> Tensor:
    """[1, channels, height, width] in float16, zero except `corner` x `corner` pixels at the lower right."""
    image = sparse(1, channels, height, width, dtype=torch.float16)
    image[..., -corner:, -corner:] = normal(1, channels, corner, corner, dtype=torch.float16)
    return image


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's sparse memory")
@pytest.mark.parametrize(
    ("operation", "capability"),
    [
        ("dynamic_depthwise_conv", (8, 6)),
        ("fused_dynamic_depthwise_conv", (7, 5)),
        ("fused_dynamic_depthwise_conv", (8, 6)),
    ],
)
def test_images_of_over_2_31_pixels(monkeypatch, emulate, operation, capability):
    """The last tile of planes of 2.2e9 pixels (fused, without and with tensor cores) and of 2.2e9 filters is right."""
    emulate(capability=capability, enough_blocks=2**16)  # few tiles in each block that sums over tiles
    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: LastBlocks(instance, "ascending"))
    monkeypatch.setattr(torch, "empty_like", lambda t: sparse(*t.shape, dtype=t.dtype))
    corner, tile = 80, 8  # pixels at the lower right that hold values, and that lie in the last tile
    if operation.startswith("fused"):
        height, width = 48 * 1050 + tile, 16 * 2680 + tile
        weight, bias = normal(36, 1, dtype=torch.float32), normal(36, dtype=torch.float32)
        rest = (weight, bias, 3)
        arguments = (sparse_image(4, height, width, corner), sparse_image(1, height, width, corner), *rest)
        inside = tuple(t[..., -corner:, -corner:].double() for t in arguments[:2])
        expected = results(reference.BACKEND, operation, (*inside, weight.double(), bias.double(), 3))[:3]
    else:
        height, width = 48 * 300 + tile, 16 * 1080 + tile - 1
        filters = sparse_image(9, height, width, corner).unflatten(1, (1, 3, 3))
        arguments = (sparse_image(2, height, width, corner), filters)
        expected = results(reference.BACKEND, operation, tuple(t[..., -corner:, -corner:].double() for t in arguments))
    assert max(t.numel() for t in arguments[:2]) > 2**31
    grad = sparse_image(arguments[0].shape[1], height, width, corner)
    grad[..., -corner:, -corner:] = arguments[0][..., -corner:, -corner:].roll(1, dims=1)
    convolution, x = RECORDS[operation](*arguments[1:]), arguments[0]
    gradients = cuda.BACKEND.convolve_backward(convolution, x, grad)
    actual = (cuda.BACKEND.convolve(convolution, x), *gradients[: len(expected) - 1])
    last = (..., slice(-tile + 1, None), slice(-tile + 1, None))
    error = relative_error(tuple(t[last] for t in actual), tuple(t[last] for t in expected))
    assert error <= TOLERANCE[torch.float16]


@pytest.mark.long
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_networks(monkeypatch, emulate, path):
    """Whole networks on the kernels: outputs and gradients are those of the published definition."""
    emulate("ascending")
    kernels = dataclasses.replace(cuda.BACKEND, unsuited=lambda *call: None)
    monkeypatch.setattr(dispatch, "BACKENDS", {name: dispatch.BACKENDS[name] for name in ("cuda", "composed")})
    monkeypatch.setattr(dispatch, "load", lambda name: kernels if name == "cuda" else composed.BACKEND)
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case).train()
    image = torch.from_numpy(golden["input"]).requires_grad_()
    output = network(image)
    sample = output.detach().flatten()[::11].numpy()
    assert np.abs(sample - golden["output_train_sample"]).max() <= 1e-9 * sample.std()
    if "output_weight" in golden:
        (output * torch.from_numpy(golden["output_weight"])).sum().backward()
        assert np.abs(image.grad.numpy() - golden["grad_input"]).max() <= 1e-9 * golden["grad_input"].std()
