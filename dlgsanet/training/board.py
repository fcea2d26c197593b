"""TensorBoard (and wandb, which follows it): scalars and pictures over iterations, none of them twice."""

from pathlib import Path
from typing import Any

import numpy as np

from dlgsanet.errors import UserError


class Board:
    """Writes what the `logger` section asks for; nothing where it asks for nothing.

    Args:
        options: of the run.
        start: the iteration that the run goes on from. What an earlier start wrote after it is taken back.
    """

    def __init__(self, options: dict[str, Any], start: int):
        logger = options["logger"]
        self.writer = None
        if not logger.get("use_tb_logger") or options["rank"] != 0:
            return
        if (logger.get("wandb") or {}).get("project"):
            _start_wandb(options)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"logger.use_tb_logger: tensorboard is not installed ({error})") from None
        folder = Path(options["root_path"], "tb_logger", options["name"])
        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Write values under their names."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Write a picture, uint8 [H, W, 3] in BGR."""
        if self.writer:
            self.writer.add_image(name, image[..., ::-1].copy(), iteration, dataformats="HWC")

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _start_wandb(options: dict[str, Any]) -> None:
    from basicsr.utils import init_wandb_logger

    try:
        init_wandb_logger(options)
    except ImportError as error:
        raise UserError("logger.wandb: wandb is not installed; pip install wandb, or leave the section out") from error
