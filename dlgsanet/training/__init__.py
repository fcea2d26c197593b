"""Training from an option file: exact resume, checkpoints that are never torn, several ranks, clear errors."""

import dlgsanet.basicsr_compat  # noqa: F401  # before any module here imports BasicSR
