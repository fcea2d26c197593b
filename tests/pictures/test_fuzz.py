"""Whatever bytes are in a file, its reader gives a picture or a network, or tells in one line what is wrong."""

import io
import random
import time
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dlgsanet.archs.checkpoint import build_network, read_checkpoint
from dlgsanet.errors import UserError
from dlgsanet.pictures.reading import read_picture
from tests.small_network import small_network

MINUTES = 10  # of the long run, both readers together


def damaged(content: bytes, seed: int) -> bytes:
    """Bytes changed, cut out, doubled, or cut off."""
    random_ = random.Random(seed)
    data = bytearray(content)
    for _ in range(random_.choice((1, 2, 8, 64))):
        place = random_.randrange(min(len(data), random_.choice((40, 400, len(data)))))
        length = random_.choice((1, 2, 4, 100))
        match random_.randrange(5):
            case 0:
                data[place] = random_.randrange(256)
            case 1:
                data[place : place + length] = random_.choice((b"\0", b"\xff", b"\x80")) * length
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4 if random_.random() < 0.2:
                del data[place:]
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def pictures(photo):
    image, found = Image.fromarray(photo[:24, :20]), []
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    for file_format, options in [
        ("PNG", {}), ("JPEG", {"exif": turned}), ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("GIF", {}), ("PNG", {"icc_profile": b"profile" * 9}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        found.append(buffer.getvalue())
    deep = photo[:24, :20].astype(np.uint16) * 257
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, deep, photometric="rgb")
    found.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(deep[..., 0]).save(buffer, "PNG")
    return [*found, buffer.getvalue()]


@pytest.fixture(scope="module")
def checkpoints(weights):
    buffers = [io.BytesIO(), io.BytesIO()]
    state = small_network().state_dict()
    torch.save({"params_ema": state}, buffers[0])
    torch.save(state, buffers[1], _use_new_zipfile_serialization=False)
    return [weights.read_bytes(), *(b.getvalue() for b in buffers)]


@contextmanager
def tells_in_one_line():
    try:
        yield
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error


def survives_as_picture(content: bytes, path) -> None:
    with tells_in_one_line():
        picture = read_picture(path, content)
        assert picture.color.ndim == 3
        assert picture.color.dtype in (np.uint8, np.uint16)


def survives_as_checkpoint(content: bytes, path) -> None:
    path.write_bytes(content)
    with tells_in_one_line():
        network = build_network(read_checkpoint(path))
        assert not network.training


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_pictures(pictures, tmp_path, seed):
    survives_as_picture(damaged(pictures[seed % len(pictures)], seed), tmp_path / "a.png")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_checkpoints(checkpoints, tmp_path, seed):
    survives_as_checkpoint(damaged(checkpoints[seed % len(checkpoints)], seed), tmp_path / "a.pth")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, content):
    survives_as_picture(content, tmp_path / "a.png")
    survives_as_checkpoint(content, tmp_path / "a.pth")


@pytest.mark.long
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_ten_minutes_of_damage(pictures, checkpoints, tmp_path):
    end = time.monotonic() + 60 * MINUTES
    first = seed = random.SystemRandom().randrange(2**32)
    while time.monotonic() < end:
        try:
            survives_as_picture(damaged(pictures[seed % len(pictures)], seed), tmp_path / "a.png")
            survives_as_checkpoint(damaged(checkpoints[seed % len(checkpoints)], seed), tmp_path / "a.pth")
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
    print(f"{seed - first} pictures and as many checkpoints")
