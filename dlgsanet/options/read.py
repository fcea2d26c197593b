"""From an option file to the options that a run works with."""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlgsanet.errors import ArgumentError, UserError, unknown
from dlgsanet.extensions import import_all, names_in
from dlgsanet.files import expanded
from dlgsanet.options.check import faults_of_hardware, faults_of_options
from dlgsanet.options.kinds import phase_of
from dlgsanet.options.parse import load_yaml, parse_value
from dlgsanet.options.table import TEST_FILE, TRAINING_FILE

MOST_FAULTS = 20  # that a message lists


def read_options(
    path: str | os.PathLike[str],
    is_train: bool,
    *,
    changes: Sequence[str] = (),
    data_root: str | None = None,
    debug: bool = False,
    auto_resume: bool = False,
    imports: Sequence[str] = (),
    datasets: Sequence[str] | None = None,
    hardware: bool = True,
) -> dict[str, Any]:
    """Read, check and complete an option file.

    Args:
        path: the option file.
        is_train: whether it is for training or for testing.
        changes: of single options, each `"section:option=value"` with the value in YAML.
        data_root: folder that stands for `datasets/` in the file's relative data roots.
        debug: log every iteration, validate and save every 8, in a run called `debug_NAME`.
        auto_resume: continue from the newest checkpoint of the run.
        imports: files and modules to import first (`dlgsanet.extensions`), next to those of the file's `import`.
        datasets: of a test file, names of the data sets to use. None: all of them.
        hardware: refuse options that need a GPU which is not there.

    Returns:
        The options with every default of `dlgsanet.options.table` filled in, and with what BasicSR's classes expect:
        `rank`, `world_size`, `dist`, `manual_seed`, `num_gpu` (no more than there are), `phase` and `scale` of every
        data set, and the run's folders under the working folder in `path`; and `option_file`, for messages. Data sets
        of a test file that are not there are left out; `absent` has a line for each of them.

    Raises:
        UserError: the file cannot be read, or has faults, all of which are named, a line each.
    """
    options = load_options(path, changes)
    import_all(imports, near=Path(path).parent)
    import_all(names_in(options.get("import")), near=Path(path).parent, asked_by=f"{path}: import")
    check_options(options, is_train, path)
    options = (TRAINING_FILE if is_train else TEST_FILE).completed(options)
    if datasets is not None:
        _choose(options, datasets)
    options = _complete(options, is_train, debug, auto_resume) | {"option_file": str(path)}
    _expand_paths(options, data_root, path, is_train)
    if hardware:
        _raise(path, faults_of_hardware(options))
    return options


def load_options(path: str | os.PathLike[str], changes: Sequence[str] = ()) -> dict[str, Any]:
    """An option file with changes of single options, not yet checked; see `read_options`."""
    options = load_yaml(path)
    for change in changes:
        change_option(options, change)
    return options


def check_options(options: dict[str, Any], is_train: bool, source: str | os.PathLike[str]) -> None:
    """Raise a UserError that lists every fault of the options, a line each."""
    _raise(source, faults_of_options(options, is_train))


def _raise(source: str | os.PathLike[str], faults: Sequence[str]) -> None:
    if len(faults) == 1:
        raise UserError(f"{source}: {faults[0]}")
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        listed = "\n".join(f"  {fault}" for fault in [*faults[:MOST_FAULTS], *more])
        raise UserError(f"{source} has {len(faults)} faults:\n{listed}")


def change_option(options: dict[str, Any], change: str) -> None:
    """``a:b=value`` sets options["a"]["b"] to the value, read as YAML. A section that becomes ``~`` is removed.

    Raises:
        UserError: it is not of this form, or there is no such section.
    """
    keys, equals, value = change.partition("=")
    *sections, last = keys.strip().split(":")
    if not equals or not last:
        raise UserError(f"{change}: write KEY:KEY=VALUE, e.g. train:ema_decay=0.99")
    if not sections and "." in last and last not in options:  # as messages name an option
        raise UserError(f"{change}: sections end with a colon; write {last.replace('.', ':')}={value}")
    for key in sections:
        if not isinstance(options.get(key), dict):
            sections_there = [name for name, value in options.items() if isinstance(value, dict)]
            hint = "a section that the file does not have is added as a whole, e.g. dist_params={timeout: 1200}"
            raise UserError(f"{change}: {unknown('section', key, sections_there)}; {hint}")
        options = options[key]
    try:
        parsed = parse_value(value, change)
        if parsed is None and isinstance(options.get(last), dict):
            del options[last]
        else:
            options[last] = parsed
    except UserError as error:
        raise UserError(f"""{error}; put a text in quotes: "{keys}='{value}'\"""") from None


def _choose(options: dict[str, Any], datasets: Sequence[str]) -> None:
    """Leave only the data sets of these names."""
    names = [data_set["name"] for data_set in options["datasets"].values()]
    for name in datasets:
        if name not in names:
            raise ArgumentError("datasets", unknown("data set", name, names))
    options["datasets"] = {key: opt for key, opt in options["datasets"].items() if opt["name"] in datasets}


def _expand_paths(
    options: dict[str, Any], data_root: str | None, source: str | os.PathLike[str], is_train: bool
) -> None:
    """Replace `~` and `datasets/` in paths, and check that the files and folders are there."""
    faults: list[str] = []
    absent: dict[str, str] = {}
    relocated = False
    for name, data_set in options["datasets"].items():
        for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
            given = data_set.get(key)
            several = given if isinstance(given, list) else [given]
            if not all(isinstance(path, str) for path in several):
                continue
            given_paths = [str(expanded(path)) for path in several]
            found = [_in_data_root(path, data_root) for path in given_paths]
            relocated = relocated or found != given_paths
            data_set[key] = found if isinstance(given, list) else found[0]
            hint = "" if key == "meta_info_file" else "; make it with `dlgsanet data`, or set --data-root"
            missing = [f"datasets.{name}.{key}: there is no {path}{hint}" for path in found if not _exists(path)]
            if is_train or key == "meta_info_file":
                faults += missing
            elif missing:
                absent.setdefault(name, f"{data_set['name']} is left out: {missing[0]}")
    if data_root and not relocated:
        raise ArgumentError("data_root", f"{source} names no folder in datasets/ that it could stand for")
    if absent and len(absent) == len(options["datasets"]):
        faults += absent.values()
    options["datasets"] = {name: opt for name, opt in options["datasets"].items() if name not in absent}
    options["absent"] = list(absent.values())
    paths = options["path"]
    for key in ("pretrain_network_g", "resume_state"):
        if paths.get(key):
            paths[key] = str(expanded(paths[key]))
            if not _exists(paths[key], file=True) and not (key == "pretrain_network_g" and _continues(options)):
                faults.append(f"path.{key}: there is no file {paths[key]}; give one with --force-yml path:{key}=FILE")
    if teacher := options.get("train", {}).get("teacher_opt"):
        teacher["path"] = str(expanded(teacher["path"]))
        if not _exists(teacher["path"], file=True):
            faults.append(f"train.teacher_opt.path: there is no file {teacher['path']}")
    _raise(source, faults)


def _continues(options: Mapping[str, Any]) -> bool:
    """Whether a run continues from a checkpoint, which has all weights."""
    paths = options["path"]
    states = Path(paths["training_states"]).glob("*.state") if options["auto_resume"] else ()
    return bool(options["is_train"] and (paths.get("resume_state") or any(states)))


def _in_data_root(path: str, data_root: str | None) -> str:
    parts = Path(path).parts
    return str(Path(data_root, *parts[1:])) if data_root and parts[:1] == ("datasets",) else path


def _exists(path: str, file: bool = False) -> bool:
    try:
        return Path(path).is_file() if file else Path(path).exists()
    except (OSError, ValueError):  # names that are too long, folders that may not be searched
        return False


def _complete(options: dict[str, Any], is_train: bool, debug: bool, auto_resume: bool) -> dict[str, Any]:
    import torch
    from basicsr.utils.dist_util import get_dist_info

    options |= {"is_train": is_train, "auto_resume": auto_resume}
    options["rank"], options["world_size"] = get_dist_info()
    options["dist"] = torch.distributed.is_available() and torch.distributed.is_initialized()
    options["seed_is_drawn"] = "manual_seed" not in options
    options.setdefault("manual_seed", random.SystemRandom().randint(1, 10000))
    gpus = torch.cuda.device_count()
    options["num_gpu"] = gpus if options["num_gpu"] == "auto" else min(int(options["num_gpu"]), gpus)
    for name, data_set in options["datasets"].items():
        data_set |= {"phase": phase_of(name), "scale": options["scale"], "manual_seed": options["manual_seed"]}
    if debug:
        _report_often(options, is_train)
    root = Path.cwd() / ("experiments" if is_train else "results") / options["name"]
    options["root_path"] = str(Path.cwd())
    options["path"] |= {"log": str(root), "visualization": str(root / "visualization")}
    if is_train:
        states = str(root / "training_states")
        options["path"] |= {"experiments_root": str(root), "models": str(root / "models"), "training_states": states}
    else:
        options["path"] |= {"results_root": str(root)}
    return options


def _report_often(options: dict[str, Any], is_train: bool) -> None:
    if not options["name"].startswith("debug"):
        options["name"] = f"debug_{options['name']}"
    if is_train:
        options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 8}
        if "val" in options:
            options["val"]["val_freq"] = 8
