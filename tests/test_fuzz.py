"""For any bytes in a file, a reader returns what it reads, or raises an error of one line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlgsanet.archs.checkpoint import read_checkpoint
from dlgsanet.pictures.reading import read_picture
from tests import fuzz

DRIVERS = ["tests.pictures.fuzz_pictures", "tests.data.fuzz_lmdb", "tests.archs.fuzz_checkpoints"]
MINUTES = 10  # of the long run


@pytest.mark.parametrize("driver", DRIVERS)
def test_damaged_files(driver):
    read, good = fuzz.drive(driver, 4, seed=1)
    assert read > 16
    assert 0 < good < read


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 300)
@pytest.mark.parametrize("driver", DRIVERS)
def test_minutes_of_damaged_files(driver):
    assert fuzz.drive(driver, 60 * MINUTES)[0] > 1000


@pytest.mark.parametrize(("name", "read"), [("a.png", read_picture), ("a.pth", read_checkpoint)])
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, name, read, content):
    (tmp_path / name).write_bytes(content)
    fuzz.is_read(lambda: read(tmp_path / name))
