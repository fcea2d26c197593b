"""Launches of CUDA kernels without a GPU."""

import os

import pytest

from dlgsanet.ops.backends import cuda
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from tests.ops import emulator
from tests.ops.emulator import EmulatedModule


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
