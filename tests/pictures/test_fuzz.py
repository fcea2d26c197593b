"""For any bytes in a file, the reader returns a picture or a network, or raises an error of one line."""

import io
import random
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlgsanet.archs.checkpoint import build_network, read_checkpoint
from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import read_picture
from tests.conftest import REPOSITORY
from tests.pictures.fuzz_pictures import damaged
from tests.small_network import small_network

MINUTES = 10  # of each long run


@pytest.fixture(scope="module")
def checkpoints(weights):
    buffers = [io.BytesIO(), io.BytesIO()]
    state = small_network().state_dict()
    torch.save({"params_ema": state}, buffers[0])
    torch.save(state, buffers[1], _use_new_zipfile_serialization=False)
    return [weights.read_bytes(), *(b.getvalue() for b in buffers)]


@contextmanager
def raises_one_line_at_most():
    try:
        yield
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error


def survives_as_checkpoint(content: bytes, path) -> None:
    path.write_bytes(content)
    with raises_one_line_at_most():
        network = build_network(read_checkpoint(path))
        assert not network.training


def fuzz(seconds: float) -> None:
    command = [sys.executable, "-m", "tests.pictures.fuzz_pictures", str(random.randrange(2**32)), str(seconds)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 2 * seconds, done.stdout


def test_damaged_pictures():
    fuzz(8)


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 300)
def test_minutes_of_damaged_pictures():
    fuzz(60 * MINUTES)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_checkpoints(checkpoints, tmp_path, seed):
    survives_as_checkpoint(damaged(checkpoints[seed % len(checkpoints)], seed), tmp_path / "a.pth")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, content):
    with raises_one_line_at_most():
        read_picture(tmp_path / "a.png", content)
    survives_as_checkpoint(content, tmp_path / "a.pth")


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 300)
def test_minutes_of_damaged_checkpoints(checkpoints, tmp_path):
    end = time.monotonic() + 60 * MINUTES
    first = seed = random.SystemRandom().randrange(2**32)
    while time.monotonic() < end:
        try:
            survives_as_checkpoint(damaged(checkpoints[seed % len(checkpoints)], seed), tmp_path / "a.pth")
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
    print(f"{seed - first} checkpoints")
