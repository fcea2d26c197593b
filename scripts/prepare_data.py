"""The same as `dlgsanet data`, from a checkout not installed: `python scripts/prepare_data.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dlgsanet.data.prepare import main
from dlgsanet.errors import UserError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"prepare_data.py: error: {error}")
