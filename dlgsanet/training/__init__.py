"""Training from an option file: exact resume, whole checkpoints, many ranks, and a word for every fault."""
