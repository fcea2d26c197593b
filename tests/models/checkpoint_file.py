"""A checkpoint as a run reads it again."""

import io

import torch

from dlgsanet.training.checkpoints import Checkpoint
from dlgsanet.training.resume import Position, state_of, weights_of


def checkpoint_file(model, iteration: int) -> Checkpoint:
    """The model's checkpoint, written to a file and read on the CPU."""
    file = io.BytesIO()
    torch.save((weights_of(model), state_of(model, Position(iteration), 0, {})), file)
    file.seek(0)
    return Checkpoint(iteration, *torch.load(file, map_location="cpu", weights_only=True))
