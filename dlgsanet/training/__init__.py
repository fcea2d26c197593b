"""Training from an option file: exact resume, whole checkpoints, many ranks, and a word for every fault."""

import dlgsanet.basicsr_compat  # noqa: F401  # before any module here imports BasicSR
