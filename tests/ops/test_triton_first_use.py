"""Triton kernels are tried once per card; those that fail, in every way, are refused, and the next backend serves."""

import logging
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import torch as strips
from dlgsanet.ops.backends import triton, verdicts
from tests.ops import calls
from tests.ops.conftest import CARD, never, restart
from tests.ops.strict_interpreter import strict_interpreter

if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU: tests/ops/test_cuda_gpu.py", allow_module_level=True)
pytest.importorskip("triton")  # interpreted: tests/conftest.py

from dlgsanet.ops.backends.triton import steps, training


@pytest.fixture(autouse=True)
def card(new_card, monkeypatch):
    """The Triton backend on the CPU, interpreted, as on a card that is used for the first time."""
    monkeypatch.setattr(triton, "DEVICES", ("cpu",))
    with strict_interpreter():
        yield


def chosen(dtype: torch.dtype = torch.float64):
    call = calls.one_of_each((1, 4, 5))["gated_feed_forward"].map(lambda t: t.to(dtype))
    return dispatch.select(call.record, call.x)


def tries_again(monkeypatch) -> bool:
    with monkeypatch.context() as patch:
        patch.setattr(triton, "_difference", never)
        restart()
        return "it is run again" in str(triton.refused(torch.float64, torch.device("cpu")))


def test_the_environment_turns_off_these_kernels_alone(monkeypatch):
    monkeypatch.setattr(triton, "_difference", lambda dtype, device: 0.0)
    assert chosen() is triton.BACKEND
    monkeypatch.setenv("DLGSANET_BACKEND", "-triton")
    assert chosen() is strips.BACKEND
    assert "cuda" in dispatch.candidates()  # for the dynamic convolution


def test_kernels_that_agree_are_tried_once_per_card(monkeypatch):
    monkeypatch.setattr(triton, "_difference", lambda dtype, device: 0.0)
    assert chosen() is triton.BACKEND
    monkeypatch.setattr(triton, "_difference", never)
    restart()
    assert chosen() is triton.BACKEND
    assert chosen(torch.float32) is not triton.BACKEND  # which was not tried


@pytest.mark.parametrize("dtype", verdicts.TOLERANCE, ids=str)
def test_kernels_agree_in_every_dtype(dtype):
    assert triton.examine(dtype, torch.device("cpu")).reason is None


def test_the_distribution_may_have_another_name_than_triton(monkeypatch):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", missing)
    monkeypatch.setattr(triton, "_difference", lambda dtype, device: 0.0)
    assert chosen() is triton.BACKEND


CHANGES = {
    "card": lambda patch: patch.setattr(verdicts, "describe_card", lambda device: ("Another card", "12.9")),
    "driver": lambda patch: patch.setattr(verdicts, "describe_card", lambda device: (CARD, "13.0")),
    "PyTorch": lambda patch: patch.setattr(torch, "__version__", "99.0"),
    "Triton": lambda patch: patch.setattr(triton, "_triton", lambda: Path(__file__)),
    "compiler": lambda patch: patch.setenv("CC", "/opt/another/cc"),
    "sources": lambda patch: Path(triton.__file__).with_name("kernels.py").write_text("# changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_tried_again(change, monkeypatch, tmp_path):
    copied = shutil.copytree(Path(triton.__file__).parent, tmp_path / "triton")
    monkeypatch.setattr(triton, "__file__", str(copied / "__init__.py"))
    monkeypatch.setattr(triton, "_difference", lambda dtype, device: 0.0)
    assert chosen() is triton.BACKEND
    assert not tries_again(monkeypatch)
    CHANGES[change](monkeypatch)
    assert tries_again(monkeypatch)


class Faulty:
    """A kernel that does `fault` to the image that it writes, its last one."""

    def __init__(self, kernel, fault):
        self.kernel, self.fault = kernel, fault

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.kernel[grid](*args, **constants)
            self.fault([a for a in args if isinstance(a, Tensor)][-1])

        return launch


def raises(*arguments) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


FAULTS = {
    "disagrees": (lambda image: image.mul_(1.001), "differs from the reference by"),
    "gives no numbers": (lambda image: image.fill_(torch.nan), "inf"),
    "does not start": (raises, "no kernel image"),
}


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("normalise", "gives no numbers"), ("depthwise", "disagrees"), ("attention", "does not start"),
        ("gate_project_backward", "gives no numbers"), ("project", "does not start"),
    ],
)  # fmt: skip
def test_faulty_kernels_are_refused_with_a_warning_and_the_next_backend_serves(kernel, fault, monkeypatch, caplog):
    change, reason = FAULTS[fault]
    trains = hasattr(training.kernels, kernel)
    kernels, dtype = (training.kernels, torch.bfloat16) if trains else (steps.kernels, torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, kernel, Faulty(getattr(kernels, kernel), change))
        assert chosen(dtype) is strips.BACKEND
    (warning,) = warnings_of(caplog)
    assert all(named in warning for named in (str(dtype).removeprefix("torch."), CARD, reason, "doctor"))
    caplog.clear()
    restart()  # in the next process they are not tried, and the warning is the same
    assert chosen(dtype) is strips.BACKEND
    assert warnings_of(caplog) == [warning]


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_compiler_that_was_missing_is_found(monkeypatch):
    """Kernels that were refused for want of a C compiler are tried again with one."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(triton, "_difference", raises)
        assert chosen() is strips.BACKEND
    assert not tries_again(monkeypatch)
    monkeypatch.setenv("CC", "/usr/bin/cc")
    assert tries_again(monkeypatch)


def test_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Triton" in triton.refused(torch.float64, torch.device("cpu"))
    assert not list(verdicts.cache_folder().glob("*.json"))


SIZED = {
    "gated_feed_forward": lambda n: calls.feed_forward((1, 4, 5), 12 * n, 10 * n, 0, True),
    "dynamic_local_attention": lambda n: calls.local_attention((1, 4, 5), 2 * n, 6, 6, 7, 0, True),
    "channel_attention": lambda n: calls.channel_attention((1, 4, 5), 3 * n, 8, "relu", None, 0, True),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_are_tried_at_their_own_sizes_before_they_are_trained(name, dtype, monkeypatch, caplog):
    def chosen(n: int):
        call = SIZED[name](n).map(lambda t: t.to(dtype))
        return dispatch.select(call.record, call.x, training=True)

    monkeypatch.setattr(triton, "_difference", lambda dtype, device: 0.0)
    assert chosen(1) is triton.BACKEND
    monkeypatch.setattr(triton, "_difference_in_training", never)
    restart()
    assert chosen(1) is triton.BACKEND  # by the kept verdict
    assert chosen(2) is not triton.BACKEND
    assert f"training {name}" in caplog.text
