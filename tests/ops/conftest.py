"""Launches of CUDA kernels without a GPU."""

import pytest

from dlgsanet.ops.backends import cuda
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from tests.ops.emulator import EmulatedModule


@pytest.fixture
def emulate(monkeypatch):
    """Run launches in the emulator, with an order of the threads, and without a barrier ("file:line")."""

    def use(order: str = "ascending", without_barrier: str = "") -> None:
        cuda.forget_plans()
        monkeypatch.setattr(cuda_modules, "multiprocessors", lambda device: 3)
        monkeypatch.setattr(cuda_modules, "load", lambda i, device: EmulatedModule(i, order, without_barrier))

    use()
    yield use
    cuda.forget_plans()
