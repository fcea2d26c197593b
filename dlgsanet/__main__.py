"""`python -m dlgsanet`: the `dlgsanet` command."""

import sys

from dlgsanet.cli import main

sys.exit(main())
