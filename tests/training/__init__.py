import dlgsanet.plugin  # noqa: F401  # before BasicSR, also in processes that start with a module of tests
