"""`python -m dlgsanet`: the `dlgsanet` command."""

from dlgsanet.cli import entry

entry()
