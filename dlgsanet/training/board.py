"""TensorBoard (and wandb, which follows it): scalars and pictures over iterations, each iteration once."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dlgsanet.errors import UserError, reason_of
from dlgsanet.files import write_whole
from dlgsanet.training.resume import Position

OF_VALIDATION = ("metrics/", "pictures/")


class Board:
    """Writes what the `logger` section asks for; nothing where it asks for nothing.

    Args:
        options: of the run.
        position: where the run continues. What earlier starts wrote after it is deleted from their files.
    """

    def __init__(self, options: dict[str, Any], position: Position):
        logger = options["logger"]
        self.writer = None
        if not logger.get("use_tb_logger") or options["rank"] != 0:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"logger.use_tb_logger: tensorboard is not installed ({error})") from None
        folder = Path(options["root_path"], "tb_logger", options["name"])
        for path in folder.glob("events.out.tfevents.*"):
            _take_back(path, position)
        self._former_hook, threading.excepthook = threading.excepthook, self._in_thread
        self.writer = SummaryWriter(str(folder))

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Write values under their names."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, image: np.ndarray, iteration: int) -> None:
        """Write a picture, uint8 [H, W, 3] in BGR."""
        if self.writer:
            self.writer.add_image(name, image[..., ::-1].copy(), iteration, dataformats="HWC")

    def flush(self) -> None:
        """Have everything written so far on disk.

        Raises:
            OSError: it cannot be written.
        """
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            with suppress(OSError):  # `flush` has reported it, or another error is being reported
                self.writer.close()
            threading.excepthook = self._former_hook

    def _in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread keeps its error and raises it in the next call, so its traceback is not needed.
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            self._former_hook(arguments)


def _take_back(path: Path, position: Position) -> None:
    """Delete from an event file what a run that continues at `position` will write again."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = list(RawEventFileLoader(str(path)).Load())
    kept = [record for record in records if _stays(Event.FromString(record), position)]
    if len(kept) == len(records):
        return
    if len(kept) <= 1:  # the first one only names the format
        path.unlink()
        return
    pieces = _Pieces()
    writer = RecordWriter(pieces)
    for record in kept:
        writer.write(record)
    write_whole(path, pieces)


class _Pieces(list[Any]):
    """A list that a `RecordWriter` can write to."""

    write = list.append


def _stays(event: Any, position: Position) -> bool:
    of_validation = any(value.tag.startswith(OF_VALIDATION) for value in event.summary.value)
    return event.step <= (position.validated if of_validation else position.iteration)


def start_wandb(options: dict[str, Any]) -> None:
    """Have wandb follow the TensorBoard files, where the `logger` section asks for it. Call it before there are any.

    Raises:
        UserError: wandb cannot start, for example without an API key.
    """
    wandb_options = options["logger"]["wandb"] or {}
    if not wandb_options.get("project") or options["rank"] != 0:
        return
    known = wandb_options.get("resume_id")
    try:
        import wandb

        wandb.init(
            project=wandb_options["project"],
            name=options["name"],
            id=known,
            resume="allow" if known else None,
            config=options,
            sync_tensorboard=True,
        )
    except Exception as error:  # wandb has errors of its own
        reason = reason_of(error, 200).rstrip(".")
        raise UserError(f"logger.wandb: {reason}; repair that, set WANDB_MODE=offline, or leave it out") from error
