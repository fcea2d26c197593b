"""The CUDA kernels compile for the supported GPUs within a budget of registers and spilled bytes.

No GPU is needed: NVRTC comes with CuPy's companion packages.
"""

import itertools
import re
import shutil
import sys

import pytest
import torch

from dlgsanet.ops import tf32 as tf32_settings
from dlgsanet.ops.backends import choice, cuda
from dlgsanet.ops.backends.cuda import channel_attention, dynamic_conv, feed_forward, first_use, local_attention
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.modules import Instance
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv
from tests.ops import calls

cupy = pytest.importorskip("cupy", reason="compiling kernels needs CuPy")

# Bytes of shared memory that a block may have.
ARCHITECTURES = {"sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_120": 99 << 10}

# (channels, groups, features): Tiny and Light, and Large, at every scale.
NETWORKS = {"Tiny and Light": (48, 8, 12), "Large": (90, 15, 22)}
ONE_GROUP = (64, 1, 16)  # as many channels in a part of a group as there can be

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# Most registers of a thread, and most bytes that it spills. float64 is for tests and only has to compile.
BUDGET = {
    "plain_forward": (168, 0),
    "plain_grad_x": (136, 0),
    "plain_grad_filters": (160, 0),
    "fused_forward": (168, 144),  # float16 and bfloat16, Large, sm_120; 112 in float32
    "fused_forward_mma": (255, 24),  # exact with 90 channels, sm_90
    "pack_expansion": (32, 0),
    "fused_grad_x": (240, 0),
    "fused_grad_x_mma": (240, 0),
    "fused_grad_z": (168, 128),
    "fused_grad_filters_mma": (168, 280),  # exact, Large, sm_90; 216 otherwise
    "fused_grad_expansion": (168, 192),
    # With 48 channels layers have 128 registers, of which exact products need more.
    "attention_sums": (255, 80),
    "attention_matrices": (48, 0),
    "attention_values": (255, 112),
    "gated_feed_forward": (255, 120),
    "local_projection": (208, 16),
    "local_attention": (255, 96),  # exact with 90 channels, sm_80
    "gated_feed_forward_backward": (255, 520),  # exact with 90 channels; 32 otherwise
    "gated_feed_forward_finish": (208, 0),
    "pack_feed_forward": (64, 0),
    "pack_for_backward": (32, 0),
    "add_rows": (48, 0),
    "sum_grad_z": (48, 0),
    "sum_grad_expansion": (32, 0),
}


def instances(
    monkeypatch, dtype: torch.dtype, layer: tuple[int, int, int], window: int, architecture: str, size=(1, 4)
) -> set[Instance]:
    """All instances that a network on a GPU would compile, with those that are timed and those without TF32."""
    wanted = set()

    class Recorder:
        def launch(self, kernel, blocks, threads, shared_bytes, *args):
            assert shared_bytes <= ARCHITECTURES[architecture], (kernel, shared_bytes)

    def load(instance, device):
        wanted.add(instance)
        return Recorder()

    dynamic_conv.plan.cache_clear()
    monkeypatch.setattr(cuda_modules, "load", load)
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: ARCHITECTURES[architecture])
    monkeypatch.setattr(cuda_modules, "capability", lambda device: divmod(int(architecture[3:]), 10))
    monkeypatch.setattr(cuda_modules, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(first_use, "refused", lambda use, run: None)
    monkeypatch.setattr(tf32_settings, "allowed_in_convolutions", lambda: True)
    monkeypatch.setattr(choice, "is_faster", lambda which, pixels, run, other: (other(), run()))
    channels, groups, features = layer
    outputs = groups * window**2
    x, z = torch.empty(1, channels, *size, dtype=dtype), torch.empty(1, features, *size, dtype=dtype)
    fused = FusedDynamicConv(z, torch.empty(outputs, features), torch.empty(outputs), window)
    cuda.forget_plans()
    cuda.BACKEND.convolve(fused, x)
    cuda.BACKEND.convolve_backward(fused, x, x)
    with monkeypatch.context() as without_tf32:
        without_tf32.setattr(tf32_settings, "allowed_in_convolutions", lambda: False)
        cuda.BACKEND.convolve(fused, x)
        cuda.BACKEND.convolve_backward(fused, x, x)
    plain = DynamicConv(torch.empty(1, groups, window, window, *size, dtype=dtype))
    cuda.BACKEND.convolve(plain, x)
    cuda.BACKEND.convolve_backward(plain, x, x)
    layers = {feed_forward.EXACT: calls.feed_forward((1, *size), channels, 2 * channels, seed=0)}
    if groups > 1:
        layers[local_attention.EXACT] = calls.local_attention(
            (1, *size), groups, channels // groups, features, window, 0
        )
        layers[channel_attention.EXACT] = calls.channel_attention((1, *size), 6, channels // 6, "relu", 48, seed=0)
    for first, call in layers.items():
        for path in cuda.OF_LAYERS:
            record, x, _ = call.map(lambda t: t.to(dtype))
            unused = cuda.no_tensor_cores(path, dtype, x.device, channels) or cuda.no_layer(record, x)
            if path.startswith(first) and not unused:
                cuda.PATHS[path](record, x, x)
    cuda.forget_plans()
    return wanted


# Every architecture, network and dtype, in window 7.
SHORT = [
    (torch.float32, "Large", 7, "sm_75"),
    (torch.float16, "Tiny and Light", 7, "sm_80"),
    (torch.float32, "Tiny and Light", 7, "sm_86"),
    (torch.float32, "Tiny and Light", 7, "sm_90"),
    (torch.bfloat16, "Large", 7, "sm_90"),
    (torch.float64, "Large", 7, "sm_90"),
    (torch.float32, "Large", 7, "sm_120"),
]


@pytest.mark.parametrize(
    ("dtype", "network", "window", "architecture"),
    [
        pytest.param(*case, marks=() if case in SHORT else pytest.mark.long)
        for case in itertools.product(DTYPES, NETWORKS, dynamic_conv.WINDOW_SIZES, ARCHITECTURES)
    ],
    ids=str,
)
def test_every_instantiation_compiles(monkeypatch, dtype, network, window, architecture):
    if int(architecture[3:]) not in cupy.cuda.nvrtc.getSupportedArchs():
        pytest.skip(f"CuPy's NVRTC {cupy.cuda.nvrtc.getVersion()} does not know {architecture}")
    for instance in instances(monkeypatch, dtype, NETWORKS[network], window, architecture):
        cubin, log = cuda_modules.compile_instance(instance, architecture, "--ptxas-options=-v")
        assert cubin.startswith(b"\x7fELF")
        used = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", log, re.S)
        assert sorted(kernel for kernel, *_ in used) == sorted(instance.kernels), log
        for kernel, spilled, registers in used:
            most_registers, most_spilled = BUDGET[kernel] if dtype != torch.float64 else (255, 4096)
            assert int(registers) <= most_registers, (kernel, registers)
            assert int(spilled) <= most_spilled, (kernel, spilled)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_launch_fits_shared_memory(monkeypatch, dtype, architecture):
    for window in dynamic_conv.WINDOW_SIZES:
        for layer in (*NETWORKS.values(), ONE_GROUP):
            assert instances(monkeypatch, dtype, layer, window, architecture)  # checks every launch


def test_nothing_is_compiled_for_another_image_size(monkeypatch):
    small = instances(monkeypatch, torch.float32, NETWORKS["Large"], 7, "sm_90", size=(1, 4))
    assert len(small) == 19
    assert instances(monkeypatch, torch.float32, NETWORKS["Large"], 7, "sm_90", size=(37, 100)) == small


def test_compiled_kernels_are_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda_modules, "KERNELS", shutil.copytree(cuda_modules.KERNELS, tmp_path / "kernels"))
    small, large = (
        next(i for i in instances(monkeypatch, torch.float32, NETWORKS["Large"], window, "sm_90") if i.source[0] == "p")
        for window in (3, 5)
    )
    compiled = []

    def compile_instance(*what):
        compiled.append(what)
        return repr(what).encode(), ""

    monkeypatch.setattr(cuda_modules, "compile_instance", compile_instance)
    for expected, instance, architecture in [(1, large, "sm_90"), (2, small, "sm_90"), (3, large, "sm_86")]:
        first = cuda_modules.cached_cubin(instance, architecture)
        assert cuda_modules.cached_cubin(instance, architecture) == first
        assert len(compiled) == expected
    with open(tmp_path / "kernels/tile.h", "a") as header:
        header.write("// changed\n")
    cuda_modules.cached_cubin(large, "sm_90")
    assert len(compiled) == 4


def test_a_cache_that_cannot_be_written_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    instance = next(iter(instances(monkeypatch, torch.float32, NETWORKS["Large"], 3, "sm_90")))
    assert cuda_modules.cached_cubin(instance, "sm_90").startswith(b"\x7fELF")


@pytest.fixture
def unusable(monkeypatch):
    """The reason why a GPU with a compute capability, and a new enough driver or not, cannot run the kernels."""

    def ask(capability: tuple[int, int] = (9, 0), driver_serves: bool = True) -> str | None:
        def shared_memory_limit(device):
            if not driver_serves:
                raise RuntimeError("cudaErrorInsufficientDriver")
            return 99 << 10

        monkeypatch.setattr(cuda_modules, "capability", lambda device: capability)
        monkeypatch.setattr(cuda_modules, "shared_memory_limit", shared_memory_limit)
        return cuda.unusable.__wrapped__(torch.device("cuda", 0))

    return ask


def test_gpus_that_cannot_run_the_kernels_are_refused_with_a_reason(unusable, monkeypatch):
    assert unusable() is None
    assert unusable((6, 1)) == "it needs a GPU of compute capability 7.0 or more, not 6.1"
    assert "does not know GPUs of compute capability 99.0" in unusable((99, 0))
    assert "cudaErrorInsufficientDriver" in unusable(driver_serves=False)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert "pip install cupy" in unusable()


def test_cupy_has_all_names_that_are_used():
    """Without a GPU the calls cannot run, but the names can be checked."""
    from cupy.cuda import driver, function, runtime

    module = function.Module()
    assert callable(module.load)
    assert callable(module.get_function)
    assert callable(driver.funcSetAttribute)
    assert driver.launchKernel.__doc__.startswith("launchKernel(intptr_t f, unsigned int grid_dim_x")
    assert callable(runtime.setDevice)
    assert driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8
    assert runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin == 97
