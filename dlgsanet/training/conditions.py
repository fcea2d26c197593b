"""What an exact resume depends on, besides the state: recorded in each checkpoint, compared when a run resumes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

import dlgsanet
from dlgsanet.data.cached_paired_dataset import PAIRED_SETS, pairs_by_root
from dlgsanet.data.contents import fingerprint
from dlgsanet.data.sources import Source, file_source
from dlgsanet.errors import UserError
from dlgsanet.extensions import imported_sources

# Options of the training data that do not change the samples: where they are read from, and how fast.
_HOW_READ = {"name", "phase", "scale", "manual_seed", "num_worker_per_gpu", "num_prefetch_queue", "prefetch_mode"}
_HOW_READ |= {"pin_memory", "cache_dir", "io_backend", "dataroot_gt", "dataroot_lq", "meta_info_file", "filename_tmpl"}
_HOW_READ |= {"batch_size_per_gpu"}
IMAGE_CONTENTS = "image contents"
# Where a run computes, and with what; it learns the same.
_WHERE = {"ranks", "threads", "device", "torch", "dlgsanet", "DLGSANET_BACKEND", "train.cuda_graph"}
START, TEACHER, CODE = "initial weights", "teacher's weights", "imported code"
_ADDED = (IMAGE_CONTENTS, START, TEACHER, CODE)  # earlier versions did not record them, nor do ranks but the first
# Options of schedules that their saved state does not contain.
_NOT_SAVED = (".milestones", ".decay_iter")


def conditions(options: dict[str, Any], train_set: Any, samples_of_iteration: int) -> dict[str, Any]:
    """Plain values by name; the names of options are those of the option file, joined by dots.

    Args:
        options: of the run.
        train_set: the data set as built.
        samples_of_iteration: of all ranks.
    """
    data = {key: value for key, value in options["datasets"]["train"].items() if key not in _HOW_READ}
    ignored = {"total_iter"} if options["num_gpu"] else {"total_iter", "cuda_graph"}
    train = {key: value for key, value in options["train"].items() if key not in ignored}
    values: dict[str, Any] = {
        "manual_seed": options["manual_seed"],
        "model_type": options["model_type"],
        "scale": options["scale"],
        "images": len(train_set),
        "image files": _names_and_sizes(train_set),
        IMAGE_CONTENTS: _contents(options, train_set),
        **_start(options),
        TEACHER: _teacher(options),
        CODE: _code(options),
        "samples of an iteration": samples_of_iteration,
        "ranks": options["world_size"],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options["num_gpu"] else "CPU",
        "torch": str(torch.__version__),
        "dlgsanet": dlgsanet.__version__,
        "DLGSANET_BACKEND": os.environ.get("DLGSANET_BACKEND"),
    }
    sections = {"datasets.train": data, "train": train, "network_g": options["network_g"]}
    return values | {name: value for key, section in sections.items() for name, value in _flat(key, section)}


def differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the conditions of a checkpoint with those of the run that resumes it.

    Returns:
        Differences that make the resumed run another one, as phrases `NAME was A, is B`; and differences in the option
        file without effect, because optimizers and schedules continue as they were saved.
    """
    changed, kept = _different(before, now)
    phrases = {name: f"{name} was {before.get(name)}, is {now.get(name)}" for name in (*changed, *kept)}
    return [phrases[name] for name in changed], [phrases[name] for name in kept]


def in_force(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a run that resumes a checkpoint which has the conditions `before`, if any.

    They have what is kept of the checkpoint, not what the option file says without effect: the next start compares
    with them.
    """
    kept = _different(before, now)[1] if before else []
    unknown = {k: before[k] for k in _ADDED if k in before}
    return unknown | {k: v for k, v in now.items() if k not in kept} | {k: before[k] for k in kept if k in before}


def _different(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of what differs: what changes the run, and what is kept as the checkpoint has it."""
    changed: list[str] = []
    kept: list[str] = []
    same_schedule = before.get("train.scheduler.type") == now.get("train.scheduler.type")
    saved = ("train.optim_", START, *(["train.scheduler."] if same_schedule else []))
    for name in sorted(before.keys() | now.keys()):
        a, b = before.get(name), now.get(name)
        if name in _ADDED and not (name in before and name in now):
            continue
        if name == "train.teacher_opt.path" and before.get(TEACHER) and before.get(TEACHER) == now.get(TEACHER):
            continue
        if a != b and (a or b):  # an option that is not set is one that is off
            (kept if name.startswith(saved) and not name.endswith(_NOT_SAVED) else changed).append(name)
    return changed, kept


def of_all_ranks(values: dict[str, Any]) -> dict[str, Any]:
    """The conditions that all ranks of a run know, and must have in common."""
    return {name: value for name, value in values.items() if name not in (*_WHERE, *_ADDED)}


def refuse_other_run(before: dict[str, Any], now: dict[str, Any], root: Path) -> None:
    """Raise a UserError if a checkpoint in `root` is of a run with other options, images or initial weights."""
    before, now = ({k: v for k, v in values.items() if k not in _WHERE} for values in (before, now))
    changed, kept = differences(before, now)
    if changed or kept:
        raise UserError(
            f"{root}: the run began otherwise: {'; '.join(changed + kept)}; to begin again, move this folder away or "
            "set another name"
        )


def with_schedule(values: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, Any]:
    """Conditions with another `train.scheduler` section, for a run that is meant to change it."""
    others = {name: value for name, value in values.items() if not name.startswith("train.scheduler.")}
    return others | dict(_flat("train.scheduler", scheduler))


def _flat(where: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(f"{where}.{key}", item)]
    return [(where, list(value) if isinstance(value, tuple) else value)]


def _start(options: dict[str, Any]) -> dict[str, str | None]:
    """A digest of the weights that a run starts from, and of how they are read. None: random weights.

    Empty if the file is no longer there, which a run that continues does not need.
    """
    path = options["path"]
    if options["rank"] != 0 or not (weights := path.get("pretrain_network_g")):
        return {START: None}
    if not Path(weights).is_file():
        return {}
    how = [path.get(key) for key in ("param_key_g", "strict_load_g")]
    return {START: hashlib.sha256(Path(weights).read_bytes() + repr(how).encode()).hexdigest()[:16]}


def _teacher(options: dict[str, Any]) -> str | None:
    """A digest of the teacher's file. None: there is no teacher."""
    teacher = options["train"].get("teacher_opt")
    return _digest([Path(teacher["path"])]) if teacher and options["rank"] == 0 else None


def _code(options: dict[str, Any]) -> str | None:
    """A digest of all files of `import` and `--import`, wherever they are. None: nothing is imported."""
    files = imported_sources() if options["rank"] == 0 else []
    return _digest(files) if files else None


def _digest(files: list[Path]) -> str:
    digests = sorted(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _contents(options: dict[str, Any], train_set: Any) -> str | None:
    """A fingerprint of the training images. None on ranks other than the first, which do not record anything."""
    return fingerprint(_sources(options["datasets"]["train"], train_set)) if options["rank"] == 0 else None


def _sources(opt: dict[str, Any], train_set: Any) -> list[Source]:
    if opt["type"] in PAIRED_SETS:
        return [source for part in pairs_by_root(opt) for pair in part for source in (pair.gt, pair.lq)]
    return [file_source(path) for path in _paths(train_set) if path.is_file()]


def _paths(train_set: Any) -> list[Path]:
    entries = getattr(train_set, "paths", [])
    return [Path(path) for entry in entries for path in (entry.values() if isinstance(entry, dict) else [entry])]


def _names_and_sizes(train_set: Any) -> str | None:
    """A digest of the names and sizes of the image files in their order, wherever their folder is.

    None: the data set has no `paths`.
    """
    if not hasattr(train_set, "paths"):
        return None
    digest = hashlib.sha256()
    for path in _paths(train_set):
        size = path.stat().st_size if path.is_file() else ""
        digest.update(f"{path.name}|{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
