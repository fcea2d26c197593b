"""Kernels that fail at their first use on a GPU, in every way, are refused, and the next kernel or backend serves."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops import tf32 as tf32_settings
from dlgsanet.ops.backends import choice, cuda, verdicts
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.records import FusedDynamicConv
from tests.ops.conftest import CARD, never, restart
from tests.ops.emulator import COMPILER, EmulatedModule

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")


@pytest.fixture
def card(new_card, monkeypatch):
    """The CUDA backend on the CPU, in the emulator, as on a card that is used for the first time."""
    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: EmulatedModule(instance, "ascending"))
    monkeypatch.setattr(cuda_modules, "shared_memory_limit", lambda device: 99 << 10)
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (8, 6))
    monkeypatch.setattr(tf32_settings, "allowed_in_convolutions", lambda: False)
    on_cpu = dataclasses.replace(cuda.BACKEND, unsuited=cuda.refused_kernels)
    load = dispatch.load
    monkeypatch.setattr(dispatch, "BACKENDS", {name: dispatch.BACKENDS[name] for name in ("cuda", "torch")})
    monkeypatch.setattr(dispatch, "load", lambda name: on_cpu if name == "cuda" else load(name))
    return on_cpu


def call(dtype: torch.dtype = torch.float32, groups: int = 3, width: int = 9) -> tuple[FusedDynamicConv, Tensor]:
    """The forward pass is not made on tensor cores for so few groups."""
    weight, bias = torch.randn(groups * 9, 4), torch.randn(groups * 9)
    z, x = torch.randn(1, 4, 8, width).to(dtype), torch.randn(1, 2 * groups, 8, width).to(dtype)
    return FusedDynamicConv(z, weight, bias, 3), x


@pytest.mark.parametrize("training", [False, True])
def test_a_kernel_that_agrees_is_tried_once_per_card(card, monkeypatch, training):
    assert dispatch.select(*call(), training) is card
    restart()
    monkeypatch.setattr(first_use, "_difference", never)
    assert dispatch.select(*call(), training) is card
    assert len(list(verdicts.cache_folder().glob("*.json"))) == 1
    monkeypatch.setattr(verdicts, "describe_card", lambda device: ("Another card", "12.9"))
    restart()
    assert "it is run again" in str(card.refuses(*call(), training))


class DoesNotLoad(EmulatedModule):
    def __init__(self, instance, order):
        raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available")


class DoesNotStart(EmulatedModule):
    def launch(self, *arguments):
        raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")


class Disagrees(EmulatedModule):
    def launch(self, kernel, blocks, threads, shared_bytes, *args):
        super().launch(kernel, blocks, threads, shared_bytes, *args)
        args[4].mul_(1.001)  # the result of the forward pass


class GivesNoNumbers(EmulatedModule):
    def launch(self, kernel, blocks, threads, shared_bytes, *args):
        args[4].fill_(torch.nan)


def does_not_compile(instance, device):
    return EmulatedModule(dataclasses.replace(instance, constants=(*instance.constants, ("MARGIN", "-1"))), "ascending")


FAULTS = {
    "does not compile": (does_not_compile, "error"),
    "does not load": (lambda instance, device: DoesNotLoad(instance, ""), "NO_BINARY_FOR_GPU"),
    "does not start": (lambda instance, device: DoesNotStart(instance, "ascending"), "INVALID_VALUE"),
    "disagrees": (lambda instance, device: Disagrees(instance, "ascending"), "e-03"),
    "gives no numbers": (lambda instance, device: GivesNoNumbers(instance, "ascending"), "inf"),
    "misses a barrier": (lambda i, device: EmulatedModule(i, "ascending", barrier("fused_forward.cu")), "reference by"),
}


def barrier(source: str) -> str:
    lines = (cuda_modules.KERNELS / source).read_text().splitlines()
    return f"{source}:{max(n for n, line in enumerate(lines, 1) if '__syncthreads()' in line)}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_refused_with_a_warning_and_the_next_backend_serves(card, monkeypatch, caplog, fault):
    load, reason = FAULTS[fault]
    monkeypatch.setattr(cuda_modules, "load", load)
    record, x = call()
    assert dispatch.select(record, x) is strips.BACKEND
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and CARD in r.getMessage()]
    assert len(warnings) == 1  # and it is the reason for the slower backend, too
    assert "fused forward in float32" in warnings[0]
    assert reason in warnings[0]
    restart()
    monkeypatch.setattr(first_use, "_difference", never)
    assert card.refuses(record, x) == warnings[0]


def test_only_the_faulty_pass_and_dtype_are_refused(card, monkeypatch):
    def load(instance, device):
        faulty = instance.source.startswith("fused_grad") and ("SCALAR", "float") in instance.constants
        return Disagrees(instance, "ascending") if faulty else EmulatedModule(instance, "ascending")

    monkeypatch.setattr(cuda_modules, "load", load)
    assert dispatch.select(*call()) is card
    assert dispatch.select(*call(), training=True) is strips.BACKEND
    assert dispatch.select(*call(torch.bfloat16), training=True) is card


def test_without_tensor_cores_the_other_kernel_serves(card, monkeypatch, caplog):
    started = []

    class Module(EmulatedModule):
        def __init__(self, instance, order):
            super().__init__(instance, order)
            self.wrong = instance.source == "fused_forward_mma.cu"

        def launch(self, kernel, blocks, threads, shared_bytes, *args):
            started.append(kernel)
            super().launch(kernel, blocks, threads, shared_bytes, *args)
            if self.wrong and kernel == "fused_forward_mma":
                args[3].add_(1)

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Module(instance, "ascending"))
    record, x = call(torch.float16, groups=5, width=8)
    assert dispatch.select(record, x) is card
    out = card.convolve(record, x)
    assert started[-1] == "fused_forward"
    torch.testing.assert_close(out, strips.BACKEND.convolve(record, x), rtol=1e-2, atol=1e-2)
    assert "fused forward on tensor cores in float16" in caplog.text


def test_the_faster_kernel_of_each_gradient_is_used(card, timed, monkeypatch, caplog):
    """The kernel for the gradient of x takes less time on tensor cores, that for the others more."""
    ran, _ = timed
    slower = ("fused_grad_x", "fused_grad_filters_mma")

    def milliseconds(run, device):
        ran.clear()
        run()
        return 1.0 + any(kernel in slower for kernel in ran)

    monkeypatch.setattr(choice, "milliseconds", milliseconds)
    record, x = call()
    assert dispatch.select(record, x, training=True) is card
    card.convolve_backward(record, x, x)
    restart()
    monkeypatch.setattr(choice, "milliseconds", never)  # the times are kept on disk
    ran.clear()
    actual = card.convolve_backward(record, x, x)
    kernels = [kernel for kernel in ran if not kernel.startswith("sum")]
    assert kernels == ["fused_grad_x_mma", "fused_grad_z", "fused_grad_expansion"]
    expected = strips.BACKEND.convolve_backward(record, x, x)
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_without_tensor_cores_other_kernels_form_the_gradients(card, monkeypatch, caplog):
    ran = []

    class Module(EmulatedModule):
        def launch(self, kernel, blocks, threads, shared_bytes, *args):
            ran.append(kernel)
            super().launch(kernel, blocks, threads, shared_bytes, *args)
            if kernel == "fused_grad_filters_mma":
                args[6].add_(100)

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Module(instance, "ascending"))
    record, x = call(torch.bfloat16)
    assert dispatch.select(record, x, training=True) is card
    card.convolve_backward(record, x, x)
    assert "fused backward on tensor cores in bfloat16" in caplog.text
    ran.clear()
    card.convolve_backward(record, x, x)
    assert "fused_grad_expansion" in ran
    assert not any("mma" in kernel for kernel in ran)


def test_lack_of_memory_says_nothing_about_a_kernel(card, monkeypatch):
    def full(use, run):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(first_use, "_difference", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        dispatch.select(*call())
    assert not list(verdicts.cache_folder().glob("*.json"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TimeoutError("of a signal's handler")])
def test_what_is_no_fault_of_a_kernel_is_not_kept(card, monkeypatch, error):
    def fails(use, run):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(first_use, "_difference", fails)
        if isinstance(error, TimeoutError):
            with pytest.raises(TimeoutError):
                dispatch.select(*call())
        else:
            assert dispatch.select(*call()) is strips.BACKEND  # in this process
    restart()
    assert dispatch.select(*call()) is card


def test_work_that_failed_before_says_nothing_about_a_kernel(card, monkeypatch):
    """A GPU reports it late: at the next call that waits for it."""

    def waits(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", waits)
    kernels = verdicts.Kernels("a kernel", torch.device("cuda", 0), 1e-5, (), ("a kernel",))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        verdicts.examine(kernels, never)
    assert not list(verdicts.cache_folder().glob("*.json"))


def test_a_damaged_kernel_on_disk_is_compiled_again(monkeypatch, tmp_path):
    function = pytest.importorskip("cupy.cuda.function")

    class Loaded:
        def load(self, cubin):
            if cubin != b"whole":
                raise RuntimeError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")

        def get_function(self, name):
            return self

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(function, "Module", Loaded)
    monkeypatch.setattr(cuda_modules, "_current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda_modules, "require_no_capture", lambda: None)
    monkeypatch.setattr(cuda_modules, "capability", lambda device: (8, 6))
    monkeypatch.setattr(cuda_modules, "compile_instance", lambda instance, architecture: (b"whole", ""))
    instance, gpu = cuda_modules.Instance("plain.cu", ()), torch.device("cuda", 0)
    cuda_modules.Module(instance, gpu)
    (kept,) = verdicts.cache_folder().glob("*.cubin")
    kept.write_bytes(b"")
    cuda_modules.Module(instance, gpu)
    assert kept.read_bytes() == b"whole"


def test_a_damaged_result_on_disk_is_made_again(card):
    dispatch.select(*call())
    (kept,) = verdicts.cache_folder().glob("*.json")
    kept.write_text("{")
    restart()
    assert dispatch.select(*call()) is card
    assert json.loads(kept.read_text())["difference"] < 1e-5


@pytest.fixture
def timed(card, monkeypatch):
    """The card's tensor cores take the first of these times, the other kernel the second; what was run, in order."""
    monkeypatch.setattr(tf32_settings, "allowed_in_convolutions", lambda: True)
    ran, times = [], [2.0, 1.0]

    class Module(EmulatedModule):
        def launch(self, kernel, *arguments):
            ran.append(kernel)
            super().launch(kernel, *arguments)

    def milliseconds(run, device):
        run()
        return times[ran[-1] == "fused_forward"]

    monkeypatch.setattr(cuda_modules, "load", lambda instance, device: Module(instance, "ascending"))
    monkeypatch.setattr(choice, "milliseconds", milliseconds)
    monkeypatch.setattr(choice, "_on_gpu", lambda device: True)
    return ran, times


def computed_by(card, ran, height=8) -> str:
    record, x = call(groups=5, width=8)
    record, x = record._replace(z=record.z.repeat(1, 1, height // 8, 1)), x.repeat(1, 1, height // 8, 1)
    dispatch.select(record, x)
    result = card.convolve(record, x)
    torch.testing.assert_close(result, strips.BACKEND.convolve(record, x), rtol=1e-2, atol=1e-2)
    return ran[-1]


def test_the_faster_kernel_is_used_and_timed_once_per_card(card, timed):
    ran, times = timed
    assert computed_by(card, ran) == "fused_forward"
    times.reverse()
    restart()
    assert computed_by(card, ran) == "fused_forward"  # as kept on disk
    assert computed_by(card, ran, height=32) == "fused_forward_mma"  # another class of sizes


@pytest.mark.parametrize(
    "state", ["torch.are_deterministic_algorithms_enabled", "dlgsanet.ops.backends.choice._in_capture"]
)
def test_what_may_not_be_timed_runs_on_tensor_cores(card, timed, monkeypatch, state):
    ran, _ = timed
    assert computed_by(card, ran, height=32) == "fused_forward"
    monkeypatch.setattr(state, lambda *_: True)
    assert computed_by(card, ran) == "fused_forward_mma"
    deterministic = "deterministic" in state
    assert computed_by(card, ran, height=32) == ("fused_forward_mma" if deterministic else "fused_forward")


def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    path = verdicts.kept_path(".json", ())
    verdicts.keep(b"{}", path)
    assert verdicts.read(path, dict) is None
