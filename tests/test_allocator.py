"""The allocator setting of training: freed memory stays with the process, unless it is turned off."""

import os
import subprocess

import pytest

from dlgsanet import allocator
from tests.conftest import python

# A command that sets the allocator as training does, writes 64 MB, frees them, and prints how many MB remain.
FREE_A_BLOCK = """
import sys, types
from dlgsanet.allocator import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
def main(argv):
    keep_freed_memory()
    before = resident()
    block = bytearray(64_000_000)
    block[::4096] = bytes([1]) * len(block[::4096])
    del block
    print(resident() - before)
    return 0
sys.modules["probe"] = types.SimpleNamespace(main=main)
from dlgsanet.cli import run
sys.exit(run("probe:main", []))
"""


def run_probe(setting: str | None) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != allocator.VARIABLE}
    if setting is not None:
        environment[allocator.VARIABLE] = setting
    return python(FREE_A_BLOCK, env=environment)


@pytest.mark.skipif(not allocator._has_glibc(), reason="the C library is not glibc")
def test_freed_memory_stays_unless_turned_off():
    assert float(run_probe(None).stdout) > 60
    assert float(run_probe("stock").stdout) < 10


def test_other_settings_are_refused():
    result = run_probe("fast")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "DLGSANET_ALLOCATOR 'fast'" in line


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setattr(os, "confstr", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert not allocator.keep_freed_memory()
