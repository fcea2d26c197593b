"""The same as `dlgsanet data`, from a checkout that is not installed: `python scripts/prepare_data.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dlgsanet.cli import run

if __name__ == "__main__":
    sys.exit(run("dlgsanet.commands.data:main", sys.argv[1:]))
