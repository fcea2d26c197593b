"""The compiled layers within a process: memory, threads, forks, and where they cannot serve."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import native
from dlgsanet.ops.backends.native import build, differentiable, dynamic_conv, layers, library
from tests.ops import native_calls as calls

REPOSITORY = Path(__file__).parents[2]
CALLS = calls.one_of_each()


@pytest.fixture(scope="module", autouse=True)
def _built():
    if problem := build.build(build.HERE):
        pytest.skip(problem)


@pytest.mark.parametrize("operation", CALLS)
def test_nothing_outside_of_a_tensor_is_read_or_written(operation, monkeypatch):
    """Every tensor lies between bands of NaN, which must stay as they are and must not show in the result."""
    band = 64

    def call_between_bands(function, tensors, sizes):
        buffers = []
        for t in tensors:
            nothing = float("nan") if t.is_floating_point() else -(2**62)
            buffers.append(torch.full((t.numel() + 2 * band,), nothing, dtype=t.dtype))
            buffers[-1][band:-band] = t.flatten()
        bands = [torch.cat([b[:band], b[-band:]]) for b in buffers]
        library.call(function, tuple(b[band:-band] for b in buffers), sizes)
        for t, buffer, before in zip(tensors, buffers, bands, strict=True):
            after = torch.cat([buffer[:band], buffer[-band:]])
            assert after.view(torch.uint8).equal(before.view(torch.uint8))  # bit by bit, as NaN differs from NaN
            t.view(-1).copy_(buffer[band:-band])

    want = calls.results(native, operation, CALLS[operation])
    for module in (differentiable, dynamic_conv, layers):
        monkeypatch.setattr(module, "call", call_between_bands)
    for g, w in zip(calls.results(native, operation, CALLS[operation]), want, strict=True):
        assert g.equal(w)


@pytest.mark.parametrize("operation", CALLS)
def test_results_do_not_depend_on_the_threads(operation):
    threads = torch.get_num_threads()
    args = calls.one_of_each((1, 100, 37))[
        operation
    ]  # high enough to fall into more tiles where there are more threads
    try:
        torch.set_num_threads(1)
        want = calls.results(native, operation, args)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            for g, w in zip(calls.results(native, operation, args), want, strict=True):
                assert g.equal(w)
    finally:
        torch.set_num_threads(threads)


class _Layer(Dataset):
    """A data set whose workers compute a layer, having been forked from a process that did so too."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return native.gated_feed_forward(*CALLS["gated_feed_forward"])


def test_data_loader_workers_compute_layers():
    want = native.gated_feed_forward(*CALLS["gated_feed_forward"])
    loader = DataLoader(_Layer(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(got.equal(want) for got in loader)


def _compute_with_two_threads(queue):
    # As a child has it that torch has not told to work alone.
    torch.set_num_threads(2)
    queue.put(native.gated_feed_forward(*CALLS["gated_feed_forward"]).numpy())


def test_a_fork_computes_layers_without_the_threads_it_lost():
    want = native.gated_feed_forward(*CALLS["gated_feed_forward"])
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_compute_with_two_threads, args=(queue,))
    child.start()
    try:
        assert torch.from_numpy(queue.get(timeout=60)).equal(want)
    finally:
        child.kill()
        child.join()


def test_calls_that_it_cannot_take():
    args = CALLS["gated_feed_forward"]
    assert "float32" in native.why_not("gated_feed_forward", *(a.double() for a in args))
    assert "meta" in native.why_not("gated_feed_forward", *(a.to("meta") for a in args))
    assert "empty" in native.why_not("gated_feed_forward", args[0][:0], *args[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in native.why_not("gated_feed_forward", *args)
    assert "windows" in native.why_not("differentiable_channel_attention", *CALLS["channel_attention"])


def test_without_its_library_the_next_backend_serves(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "_avx2.so")
    args = CALLS["gated_feed_forward"]
    assert "not built" in native.why_not("gated_feed_forward", *args)
    assert dispatch.select("gated_feed_forward", *args) is not native


def test_building_without_a_compiler_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = build.build(tmp_path)
    assert "no C++ compiler" in problem
    assert "\n" not in problem
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("PATH", os.defpath)
    assert "false failed" in build.build(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_random_calls_under_sanitizers(tmp_path):
    """Address and undefined-behaviour sanitizers see random calls of every operation on every instruction set."""
    sanitize = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    if problem := build.build(tmp_path, sanitize):
        pytest.skip(problem)
    find = [*build.compiler(), "-print-file-name=libasan.so"]
    asan = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    script = (
        "import sys; from pathlib import Path\n"
        "from dlgsanet.ops.backends.native import library; from tests.ops import test_native\n"
        "library.library_path = lambda: Path(sys.argv[1], library.library_name(library.instruction_set()))\n"
        "for operation in test_native.RANDOM_CALLS: test_native.check_random_calls(operation, 50)\n"
        "print('clean')\n"
    )
    environment = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=3600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "clean"
