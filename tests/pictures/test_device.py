"""Devices: finding one, free memory under every limit, out-of-memory errors of every library."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dlgsanet import device, memory
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.device import find_device
from dlgsanet.errors import ArgumentError
from dlgsanet.memory import free_memory, is_out_of_memory
from dlgsanet.pictures.upscale_pixels import upscale_pixels
from tests.conftest import REPOSITORY

GIB = 2**30


def test_a_gpu_is_found_before_the_cpu(monkeypatch):
    for name in device.GPUS:
        monkeypatch.setattr(device, "_is_available", lambda other, name=name: other == name)
        assert find_device().type == name
    monkeypatch.setattr(device, "_is_available", lambda name: False)
    assert find_device().type == "cpu"


def test_work_is_shared_among_gpus_of_one_make(monkeypatch):
    found = [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("mps", 0)]
    monkeypatch.setattr(device, "accelerators", lambda: iter(found))
    assert device.preferred_gpus() == found[:2]
    monkeypatch.setattr(device, "accelerators", lambda: iter(()))
    assert device.preferred_gpus() == []


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:77", "", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ArgumentError, match=r"^devices: ") as caught:
        find_device(name, "devices")
    assert caught.value.for_command().startswith("--devices: ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (np.exceptions.DTypePromotionError(), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the convolution"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_of_every_library(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize("error", [MemoryError("native"), RuntimeError("could not create a primitive")])
def test_smaller_tiles_are_tried_after_any_out_of_memory_error(network, monkeypatch, error):
    pixels = np.zeros((160, 220, 3), np.uint8)

    by_rows = DLGSANet.by_rows

    def starved(network, image, tick):
        if image.shape[2] * image.shape[3] > 130 * 130:
            raise error
        return by_rows(network, image, tick)

    monkeypatch.setattr(DLGSANet, "by_rows", starved)
    assert upscale_pixels(network, pixels).shape == (320, 440, 3)


def groups(root, limits, version, member, mounted="/"):
    """/proc/self of a process in the control group `member`, and the hierarchy mounted at root/cgroup."""
    for path, (most, used, cache) in limits.items():
        folder = root / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
        (folder / f"memory.{names[0]}").write_text(str(most))
        (folder / f"memory.{names[1]}").write_text(str(used))
        (folder / "memory.stat").write_text(f"anon 5\n{'total_' * (version == 1)}inactive_file {cache}\n")
    kind, options = ("cgroup", "rw,memory") if version == 1 else ("cgroup2", "rw,nsdelegate")
    process = root / "self"
    process.mkdir()
    line = f"30 1 0:26 {mounted} {root}/cgroup rw shared:4 - {kind} {kind} {options}"
    (process / "mountinfo").write_text(f"22 1 0:20 / /proc rw - proc proc rw\n{line}\n")
    (process / "cgroup").write_text(f"0::{member}\n" if version == 2 else f"5:cpu:/\n7:memory:{member}\n0::/x\n")
    return process


@pytest.mark.parametrize(("version", "unlimited"), [(2, "max"), (1, 0x7FFFFFFFFFFFF000)])
@pytest.mark.parametrize(
    ("limits", "member", "mounted", "expected"),
    [
        # slurm and systemd: the limit is on the group itself
        ({"": ("none", 9, 0), "job/step": (2 * GIB, GIB, 0)}, "/job/step", "/", [GIB]),
        # on a parent
        ({"job": (2 * GIB, GIB, 0), "job/step": ("none", GIB, 0)}, "/job/step", "/", [GIB]),
        # on both: the smaller one counts
        ({"job": (3 * GIB, GIB, 0), "job/step": (2 * GIB, GIB // 2, 0)}, "/job/step", "/", [GIB * 3 // 2, 2 * GIB]),
        # the file cache can be freed
        ({"job": (2 * GIB, 2 * GIB, GIB)}, "/job", "/", [GIB]),
        # over the limit for a moment
        ({"job": (GIB, 2 * GIB, 0)}, "/job", "/", [0]),
        # a container, with the group itself at the mount point, named from outside or from inside
        ({"": (2 * GIB, GIB, 0)}, "/docker/abc", "/docker/abc", [GIB]),
        ({"": (2 * GIB, GIB, 0)}, "/", "/", [GIB]),
        ({"": (2 * GIB, GIB, 0)}, "/../other", "/", [GIB]),
        ({"": ("none", 9, 0)}, "/", "/", []),
    ],
)
def test_limits_of_control_groups(tmp_path, version, unlimited, limits, member, mounted, expected):
    limits = {path: (unlimited if most == "none" else most, *rest) for path, (most, *rest) in limits.items()}
    process = groups(tmp_path, limits, version, member, mounted)
    assert list(memory._free_in_control_groups(process)) == expected


def test_no_control_groups_at_all(tmp_path):
    assert list(memory._free_in_control_groups(tmp_path)) == []


def test_free_memory_follows_the_limit_of_the_address_space():
    code = (
        "import resource, torch; from dlgsanet.memory import free_memory; "
        "before = free_memory(torch.device('cpu')); "
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, -1)); "
        "assert 0 < free_memory(torch.device('cpu')) <= 2**28 < before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_an_address_space_that_is_too_small_is_one_line(weights, tmp_path):
    """Libraries report it in different ways; none of them may end the process."""
    Image.effect_noise((2400, 2000), 60).convert("RGB").save(tmp_path / "a.png")
    code = (
        "import resource, sys, torch; from dlgsanet.cli import main; from dlgsanet import load_model; "
        "load_model(sys.argv[1])(torch.rand(1, 3, 64, 64)); "
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 120 * 2**20, -1)); "
        "sys.exit(main(['upscale', 'a.png', '-o', 'b.png', '-t', 'exact', '--weights', sys.argv[1]]))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, str(weights)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "of memory" in done.stderr.splitlines()[-1]  # "out of memory", or an estimate: "need N GiB of memory"
    assert not (tmp_path / "b.png").exists()


def test_processes_share_the_free_memory_of_the_machine_but_not_the_limit_of_the_address_space(monkeypatch):
    monkeypatch.setattr(memory, "_free_on_machine", lambda: 8 << 30)
    monkeypatch.setattr(memory, "_free_in_control_groups", lambda: [6 << 30])
    monkeypatch.setattr(memory, "_free_in_address_space", lambda: 3 << 30)
    free = []
    for processes in ("1", "2", "4"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        free.append(free_memory(torch.device("cpu")))
    assert free == [3 << 30, 3 << 30, 3 << 29]


def test_free_memory_of_this_machine_is_known():
    if not os.path.exists("/proc/meminfo"):
        pytest.skip("only Linux reports it")
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
