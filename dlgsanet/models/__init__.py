"""Models in BasicSR's sense: a network with its losses, optimiser and weights files."""

import dlgsanet.basicsr_compat  # noqa: F401  # before any module here imports BasicSR
