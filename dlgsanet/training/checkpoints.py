"""Checkpoints on disk: written aside and renamed, with checksums; the last few are kept, and the best.

A checkpoint of iteration N is made of files named as BasicSR names them, and of their checksums:

- ``models/net_g_N.pth``: the weights, ``{"params": ..., "params_ema": ...}``;
- ``training_states/N.sha256``: for ``sha256sum -c``, run in the experiment's folder;
- ``training_states/N.state``: all else that training needs to go on. Written last and deleted first: it is what makes
  a checkpoint count.
"""

import hashlib
import io
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlgsanet.errors import UserError
from dlgsanet.files import write_whole

logger = logging.getLogger("dlgsanet")

# BasicSR keeps milestones in one. What newer PyTorch reads with weights_only, older must be told.
torch.serialization.add_safe_globals([Counter])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `weights` by network label (`net_g`), each by key (`params`, `params_ema`)."""

    iteration: int
    weights: dict[str, dict[str, Any]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        root: the experiment's folder.
        keep_last: how many to keep; 2 at least, so that a damaged one has another before it.
    """

    def __init__(self, root: Path, keep_last: int = 3):
        self.root = root
        self.keep_last = keep_last

    def iterations(self) -> list[int]:
        """Iterations of the checkpoints that were written in full, oldest first."""
        return sorted(int(path.stem) for path in self.root.glob("training_states/*.state") if path.stem.isdigit())

    def save(self, iteration: int, weights: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
        """Write a checkpoint, then delete those that are no longer to be kept.

        Raises:
            UserError: it cannot be written (a full disk, say); the message names the last good one.
        """
        files = {f"models/{label}_{iteration}.pth": _serialised(content) for label, content in weights.items()}
        files[f"training_states/{iteration}.state"] = _serialised(state)
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        *rest, last = files.items()
        try:
            for name, content in (*rest, (f"training_states/{iteration}.sha256", sums.encode()), last):
                self._write(name, content)
        except UserError:
            self._delete(iteration)
            raise
        for old in self.iterations()[: -self.keep_last]:
            self._delete(old)

    def save_weights(self, label: str, name: str, content: dict[str, Any]) -> None:
        """Write weights that stand beside the checkpoints: ``models/LABEL_NAME.pth``, the best or the latest.

        Raises:
            UserError: as `save`.
        """
        self._write(f"models/{label}_{name}.pth", _serialised(content))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; what is wrong with newer ones is logged. None: there is none at all.

        Raises:
            UserError: there are some, all of them damaged.
        """
        damaged = []
        for iteration in reversed(self.iterations()):
            try:
                return self.read(iteration)
            except UserError as error:
                logger.warning("%s; using the checkpoint before it", error)
                damaged.append(str(error))
        if damaged:
            raise UserError(f"no checkpoint is whole: {'; '.join(damaged)}. To begin anew, leave --auto_resume out")
        return None

    def read(self, iteration: int) -> Checkpoint:
        """Read one checkpoint.

        Raises:
            UserError: a file of it is missing, truncated or damaged.
        """
        contents = {name: read_checked(self.root / name, checksum) for name, checksum in self._files(iteration).items()}
        state = contents.pop(f"training_states/{iteration}.state")
        weights = {Path(name).stem.removesuffix(f"_{iteration}"): content for name, content in contents.items()}
        return Checkpoint(iteration, weights, state)

    def set_aside(self, after: int) -> None:
        """Rename the states of later iterations to `.state.aside`: nothing goes on from them any more."""
        for iteration in self.iterations():
            if iteration > after:
                path = self.root / "training_states" / f"{iteration}.state"
                path.rename(f"{path}.aside")
                logger.warning("%s: set aside, no longer part of this run", path)

    def last_good(self) -> str:
        """A phrase that says where the newest checkpoint is and how to go on from it."""
        if iterations := self.iterations():
            return (
                f"the last good checkpoint is {self.root}/training_states/{iterations[-1]}.state; "
                "--auto_resume goes on from it"
            )
        return "there is no checkpoint yet"

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.root / name, content)
        except UserError as error:
            raise UserError(f"{error}; {self.last_good()}") from None

    def _files(self, iteration: int) -> dict[str, str | None]:
        """The files of a checkpoint with their checksums, which BasicSR's own checkpoints lack."""
        sums = self.root / "training_states" / f"{iteration}.sha256"
        if sums.exists():
            return {name: checksum for checksum, name in map(str.split, sums.read_text().splitlines())}
        logger.warning("%s is not there: the checkpoint is used unchecked", sums)
        names = [f"models/{path.name}" for path in self.root.glob(f"models/net_*_{iteration}.pth")]
        return dict.fromkeys([*names, f"training_states/{iteration}.state"])

    def _delete(self, iteration: int) -> None:
        for pattern in (f"training_states/{iteration}.*", f"models/net_*_{iteration}.pth"):
            for path in sorted(self.root.glob(pattern), reverse=True):  # the .state first
                path.unlink()


def _serialised(content: dict[str, Any]) -> bytes:
    # Through memory: torch.save straight to a full disk fails with a message that names neither file nor reason.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_checked(path: Path, checksum: str | None) -> dict[str, Any]:
    """Read what `torch.save` wrote, executing nothing of it.

    Args:
        path: the file.
        checksum: its SHA-256 in hexadecimal, or None, which checks nothing.

    Raises:
        UserError: it is missing, its checksum is another one, or it is not such a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if checksum and hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(f"{path}: damaged (its checksum is not the one written down)")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise UserError(f"{path}: damaged or not a checkpoint ({type(error).__name__})") from None
