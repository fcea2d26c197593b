"""Checkpoints on disk, with checksums. The last few are kept, and the best.

A checkpoint of iteration N consists of files that are named as BasicSR names them, and of their checksums:

- ``training_states/N.sha256``: for ``sha256sum -c``, run in the experiment's folder. Written first and deleted last: it
  lists what is left when a process is killed in between, and the next one deletes that.
- ``models/net_g_N.pth``: the weights, ``{"params": ..., "params_ema": ...}``;
- ``training_states/N.state``: everything else that training needs to continue. Written last and deleted first: without
  it there is no checkpoint.
"""

import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlgsanet.archs.checkpoint import write_checkpoint
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole

logger = logging.getLogger("dlgsanet")

# BasicSR keeps milestones in one. Older PyTorch does not read it with weights_only unless it is declared.
torch.serialization.add_safe_globals([Counter])

Weights = dict[str, dict[str, Any]]  # label (`net_g`) -> key (`params`, `params_ema`) -> state dict


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `weights` by network label (`net_g`), each by key (`params`, `params_ema`).

    `root` is the folder of the run that wrote it.
    """

    iteration: int
    weights: Weights
    state: dict[str, Any]
    root: Path = Path()


def iteration_of(path: Path) -> int | None:
    """The iteration of a state file, or None where it is not named ``ITERATION.state``."""
    return int(path.stem) if re.fullmatch(r"(0|[1-9][0-9]{0,17})\.state", path.name) else None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        root: the experiment's folder.
        keep_last: how many to keep; 2 at least, so that there is another before one that is damaged.
        network_options: the `network_g` options, if the generator's weights are also to be written as .safetensors,
            with these options as metadata. None: they are not.
    """

    def __init__(self, root: Path, keep_last: int = 3, network_options: Mapping[str, Any] | None = None):
        self.root = root
        self.keep_last = keep_last
        self.network_options = network_options

    def iterations(self) -> list[int]:
        """Iterations of the checkpoints that were written in full, oldest first."""
        found = map(iteration_of, self.root.glob("training_states/*.state"))
        return sorted(iteration for iteration in found if iteration is not None)

    def save(self, iteration: int, weights: Weights, state: dict[str, Any]) -> None:
        """Write a checkpoint, then delete those that are no longer to be kept, and what interrupted ones left.

        Those that BasicSR wrote, which have no checksums, stay.

        Raises:
            UserError: it cannot be written (a full disk, for example); the message names the last good one.
        """
        files = {f"models/{label}_{iteration}.pth": _serialised(content) for label, content in weights.items()}
        last = f"training_states/{iteration}.state"
        files[last] = _serialised(state | {"networks": sorted(weights)})
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        try:
            self._write(f"training_states/{iteration}.sha256", sums.encode())
            self._write_safetensors(weights, str(iteration))
            for name, content in files.items():
                self._write(name, content)
        except UserError:
            self._delete(iteration)
            raise
        for old in [number for number in self.iterations() if self._sums(number).exists()][: -self.keep_last]:
            self._delete(old)
        self._delete_orphans()

    def save_weights(self, weights: Weights, name: str, iteration: int) -> None:
        """Write weights that do not belong to a checkpoint: ``models/LABEL_NAME.pth``, the best or the latest.

        Raises:
            UserError: as `save`.
        """
        for label, content in weights.items():
            self._write(f"models/{label}_{name}.pth", _serialised(content | {"iteration": iteration}))
        self._write_safetensors(weights, name)

    def best(self) -> int | None:
        """The iteration of the best weights. None: there are no such weights, or they do not say."""
        with suppress(UserError):
            return read_checked(self.root / "models/net_g_best.pth", None).get("iteration")
        return None

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
            raise UserError(f"no checkpoint is whole: {'; '.join(damaged)}. To start over, omit --auto-resume")
        return None

    def read(self, iteration: int) -> Checkpoint:
        """Read one checkpoint.

        Raises:
            UserError: a file of it is missing, truncated or damaged.
        """
        contents = {name: read_checked(self.root / name, checksum) for name, checksum in self._files(iteration).items()}
        state = contents.pop(f"training_states/{iteration}.state")
        weights = {Path(name).stem.removesuffix(f"_{iteration}"): content for name, content in contents.items()}
        for label in state.get("networks", ["net_g"]):
            if label not in weights:
                raise UserError(f"{self.root}/models/{label}_{iteration}.pth: missing")
        return Checkpoint(iteration, weights, state, self.root)

    def set_aside(self, after: int) -> None:
        """Rename the states of later iterations to `.state.aside`: no run continues from them any more."""
        for iteration in self.iterations():
            if iteration > after:
                path = self.root / "training_states" / f"{iteration}.state"
                path.rename(f"{path}.aside")
                logger.warning("%s: set aside, no longer part of this run", path)

    def last_good(self) -> str:
        """Where the newest checkpoint is and how to continue from it, as a phrase for messages."""
        if iterations := self.iterations():
            path = self.root / "training_states" / f"{iterations[-1]}.state"
            return f"the last good checkpoint is {path}; --auto-resume continues from it"
        return "there is no checkpoint yet"

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.root / name, content)
        except UserError as error:
            raise UserError(f"{error}; {self.last_good()}") from None

    def _write_safetensors(self, weights: Weights, name: str) -> None:
        """The generator's averages, or its weights where there are none, as `dlgsanet upscale --weights` takes them."""
        if self.network_options is None or "net_g" not in weights:
            return
        content = weights["net_g"]
        path = self.root / "models" / f"net_g_{name}.safetensors"
        metadata = {"training_run": self.root.name, "checkpoint": name}
        try:
            write_checkpoint(path, content.get("params_ema") or content["params"], self.network_options, metadata)
        except UserError as error:
            raise UserError(f"{error}; {self.last_good()}") from None

    def _files(self, iteration: int) -> dict[str, str | None]:
        """The files of a checkpoint with their checksums, which BasicSR's own checkpoints lack."""
        sums = self._sums(iteration)
        state = sums.with_suffix(".state")
        if sums.exists():
            listed = _read_sums(sums, iteration)
            if f"training_states/{state.name}" not in listed:
                raise UserError(f"{sums}: damaged (it does not list {state.name})")
            return dict(listed)
        logger.warning("%s is missing: the checkpoint is used unchecked", sums)
        names = [f"models/{path.name}" for path in self.root.glob(f"models/net_*_{iteration}.pth")]
        return dict.fromkeys([*names, f"training_states/{state.name}"])

    def _sums(self, iteration: int) -> Path:
        return self.root / "training_states" / f"{iteration}.sha256"

    def _delete(self, iteration: int) -> None:
        states = self.root / "training_states"
        models = self.root.glob(f"models/net_*_{iteration}.*")
        aside = states / f"{iteration}.state.aside"
        for path in (states / f"{iteration}.state", aside, *models, self._sums(iteration)):
            path.unlink(missing_ok=True)

    def _delete_orphans(self) -> None:
        """Delete what interrupted writing or deletion of checkpoints has left."""
        for path in self.root.glob("training_states/*.sha256"):
            iteration = iteration_of(path.with_suffix(".state"))
            if iteration is not None and not list(path.parent.glob(f"{iteration}.state*")):
                self._delete(iteration)


def _read_sums(path: Path, iteration: int) -> dict[str, str]:
    """The checksums by file name.

    Raises:
        UserError: it is not such a file, or it lists what is not of this checkpoint.
    """
    line = re.compile(rf"([0-9a-f]{{64}})  (models/net_\w+_{iteration}\.pth|training_states/{iteration}\.state)", re.A)
    with suppress(OSError, UnicodeDecodeError):
        matches = [line.fullmatch(text) for text in path.read_text(encoding="ascii").split("\n")[:-1]]
        if matches and all(matches):
            return {match[2]: match[1] for match in matches if match}
    raise UserError(f"{path}: damaged (not a list of checksums)")


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
        raise UserError(f"{path}: damaged (its checksum differs from the recorded one)")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes it raise many kinds
        raise UserError(f"{path}: damaged or not a checkpoint ({type(error).__name__})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(loaded).__name__}")
    return loaded
