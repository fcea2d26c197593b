"""Losses that BasicSR lacks (it has L1Loss and CharbonnierLoss)."""
