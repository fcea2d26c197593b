"""Fixtures of the small network and the photograph."""

from tests.small_network import network, photo, weights

__all__ = ["network", "photo", "weights"]
