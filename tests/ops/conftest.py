"""Launches of CUDA kernels without a GPU, and cards that are used for the first time."""

import os

import pytest
import torch

from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import choice, cuda, triton, verdicts
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from tests.ops import emulator
from tests.ops.emulator import EmulatedModule

CARD = "A card nobody has tried (sm_86)"
# Here, because tests put other functions in place of these.
CACHES = (first_use._verdict, triton.refused, triton.refused_sizes, dispatch._choice, dispatch._report_once)


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels(tmp_path_factory):
    """What one worker has compiled serves the others."""
    own = tmp_path_factory.getbasetemp()
    emulator.folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "emulator"
    emulator.folder.mkdir(exist_ok=True)


@pytest.fixture
def emulate(monkeypatch):
    """Run launches in the emulator: an order of the threads, a missing barrier ("file:line"), a compute capability."""

    def use(order: str = "ascending", without_barrier: str = "", capability: tuple[int, int] = (9, 0)) -> None:
        cuda.forget_plans()
        monkeypatch.setattr(cuda_modules, "capability", lambda device: capability)
        monkeypatch.setattr(cuda_modules, "multiprocessors", lambda device: 3)
        monkeypatch.setattr(cuda_modules, "load", lambda i, device: EmulatedModule(i, order, without_barrier))

    use()
    yield use
    cuda.forget_plans()


@pytest.fixture
def new_card(monkeypatch, tmp_path):
    """Nothing has been tried or timed on the card."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "describe_card", lambda device: (CARD, "12.9"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    restart()
    yield
    restart()


def restart() -> None:
    """As in a new process: what is known about the card is on disk."""
    cuda.forget_plans()
    choice._chosen.clear()
    for cache in CACHES:
        cache.cache_clear()


def never(*arguments):
    raise AssertionError("it is run again")
