"""Decay branches: a copy of a run that lets its learning rate decay to 0, while the run itself can go on.

A run with a constant rate has no end of its own (see `dlgsanet.models.optimization.WSD`). A branch starts from its
newest checkpoint and gives weights to use, at any time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlgsanet.distributed import from_first, raised_on_all
from dlgsanet.errors import UserError
from dlgsanet.extensions import import_all, names_in
from dlgsanet.files import write_whole
from dlgsanet.options.read import check_options, load_options, read_options
from dlgsanet.training.checkpoints import Checkpoints
from dlgsanet.training.conditions import with_schedule
from dlgsanet.training.resume import with_constant_rate


@dataclass(frozen=True)
class Branch:
    """A branch to be trained.

    The branch of run NAME from iteration N is run NAME_decay_N. Its folder has a copy of that checkpoint and the
    branch's option file, NAME_decay_N.yml, with which it is resumed like any run.

    Args:
        file: arguments of `read_options` for the run to branch from.
        iterations: of the decay.
    """

    file: dict[str, Any]
    iterations: int

    def options(self, run: dict[str, Any]) -> dict[str, Any]:
        """Make the folder of the branch, unless it is there, and read its options. All ranks call this.

        Args:
            run: options of the run to branch from, as `read_options` returns them.

        Raises:
            UserError: the run has no checkpoint, or the branch was made before with other options.
        """
        with raised_on_all():
            path = self._make(run) if run["rank"] == 0 else None
        path = from_first(path)
        return read_options(**self.file | {"path": path, "changes": ()}, is_train=True, auto_resume=True)

    def _make(self, run: dict[str, Any]) -> str:
        source = Checkpoints(Path(run["path"]["experiments_root"]))
        newest = source.newest()
        if newest is None:
            raise UserError(f"--decay-now: there is no checkpoint in {source.root}; train {self.file['path']} first")
        if "position" not in newest.state:
            raise UserError(f"--decay-now: BasicSR wrote the checkpoints in {source.root}; resume the run here first")
        branch = load_options(self.file["path"], self.file["changes"])
        if imports := [*self.file.get("imports", ()), *names_in(branch.get("import"))]:
            branch["import"] = import_all(imports, near=Path(self.file["path"]).parent)  # it lies in another folder
        branch["name"] = f"{run['name']}_decay_{newest.iteration}"
        branch["train"] |= {
            "total_iter": newest.iteration + self.iterations,
            "scheduler": {"type": "WSD", "decay_iter": self.iterations},
        }
        branch["path"].pop("resume_state", None)  # its own folder has the checkpoint
        check_options(branch, True, f"{self.file['path']} with --decay-now")
        text = f"# The last {self.iterations} iterations of {run['name']}, from iteration {newest.iteration}.\n"
        text += yaml.safe_dump(branch, sort_keys=False)
        checkpoints = Checkpoints(source.root.with_name(branch["name"]))
        file = checkpoints.root / f"{branch['name']}.yml"
        if file.exists() and file.read_bytes() != text.encode():
            raise UserError(f"{file}: made before with other options; continue it with -opt {file} --auto-resume")
        if not checkpoints.iterations():
            state = with_constant_rate(newest.state)
            if "conditions" in state:
                state["conditions"] = with_schedule(state["conditions"], branch["train"]["scheduler"])
            state["position"] = state["position"] | {"best": {}}  # the branch keeps a best of its own
            checkpoints.save(newest.iteration, newest.weights, state)
        write_whole(file, text.encode())
        return str(file)
