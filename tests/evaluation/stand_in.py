"""A process that stands for a training run. It imports nothing, so that it starts at once."""

import os
import signal
import sys
import time
from pathlib import Path


def training(arguments):
    """Write a file `started` with the process's number and wait; on SIGTERM save, and ask to be queued again."""

    def save(*_):
        time.sleep(0.5)
        Path("saved").touch()
        sys.exit(75)

    signal.signal(signal.SIGTERM, save)
    Path("began").write_text(str(os.getpid()))
    Path("began").rename("started")
    time.sleep(300)
