"""Models in BasicSR's sense: a network with its losses, optimiser and weights files."""
