"""For any bytes in a file, the reader returns a network or raises an error of one line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlgsanet.archs.checkpoint import read_checkpoint
from tests import fuzz

MINUTES = 10  # of the long run
DRIVER = "tests.archs.fuzz_checkpoints"


def test_damaged_checkpoints():
    read, good = fuzz.drive(DRIVER, 4, seed=1)
    assert read > 16
    assert 0 < good < read


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 300)
def test_minutes_of_damaged_checkpoints():
    assert fuzz.drive(DRIVER, 60 * MINUTES)[0] > 1000


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    assert not fuzz.is_read(lambda: read_checkpoint(tmp_path / "a.pth"))
