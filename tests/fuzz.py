"""Read damaged files until the time is up: what the fuzz drivers of pictures, LMDB databases and checkpoints share.

A driver is a module with ``main(seed, seconds)``, run as a process of its own: `python -m DRIVER FIRST_SEED SECONDS`.
"""

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dlgsanet.errors import UserError
from tests.conftest import REPOSITORY

LONGEST = 10.0  # seconds of processor time for one file
ROOM = 2**30  # bytes of address space beyond what the process has at the start


def damaged(content: bytes, seed: int) -> bytes:
    """Bytes changed, cut out, doubled, or cut off."""
    random_ = random.Random(seed)
    data = bytearray(content)
    for _ in range(random_.choice((1, 2, 8, 64))):
        place = random_.randrange(min(len(data), random_.choice((40, 400, len(data)))))
        length = random_.choice((1, 2, 4, 100))
        match random_.randrange(6):
            case 0:
                data[place] = random_.randrange(256)
            case 1:
                data[place : place + length] = random_.choice((b"\0", b"\xff", b"\x80")) * length
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place] ^= 1 << random_.randrange(8)
            case 5 if random_.random() < 0.2:
                del data[place:]
        if not data:
            break
    return bytes(data)


def is_read(read: Callable[[], object]) -> bool:
    """Whether a file is still good.

    Raises:
        Exception: what a reader must not raise: anything but a UserError of one line.
        AssertionError: it took too long.
    """
    begun = time.process_time()
    try:
        read()
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return False
    finally:
        assert time.process_time() - begun < LONGEST
    return True


def run(read: Callable[[int], object], seed: int, seconds: float) -> None:
    """Call `read` with one seed after the other, in 1 GB of address space, and print how many files were read.

    What `is_read` raises ends the run with the seed.
    """
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    end, number, whole = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            whole += is_read(partial(read, seed + number))
        except BaseException:
            print(f"seed {seed + number}", file=sys.stderr)
            raise
        number += 1
    print(f"{number} files, {whole} of them still good")


def drive(driver: str, seconds: float, seed: int | None = None) -> tuple[int, int]:
    """Run a driver in a process of its own; returns how many files it read, and how many of them were still good."""
    first = random.SystemRandom().randrange(2**32) if seed is None else seed
    command = [sys.executable, "-m", driver, str(first), str(seconds)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return int(words[0]), int(words[2])
