"""Data sets: resizing, preparing, checking and storing them, and feeding them to training."""
