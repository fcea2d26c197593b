"""For any bytes in a file, the reader returns a picture or raises an error of one line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlgsanet.pictures.reading import read_picture
from tests import fuzz

MINUTES = 10  # of the long run
DRIVER = "tests.pictures.fuzz_pictures"


def test_damaged_pictures():
    assert fuzz.drive(DRIVER, 4)[0] > 16


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 300)
def test_minutes_of_damaged_pictures():
    assert fuzz.drive(DRIVER, 60 * MINUTES)[0] > 120 * MINUTES


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, content):
    fuzz.is_read(lambda: read_picture(tmp_path / "a.png", content))
