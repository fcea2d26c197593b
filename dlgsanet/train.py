"""`python dlgsanet/train.py -opt FILE`, the published command: the same as `dlgsanet train -opt FILE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its modules are not top-level ones

    from dlgsanet.cli import run

    sys.exit(run("dlgsanet.commands.train:main", sys.argv[1:]))
