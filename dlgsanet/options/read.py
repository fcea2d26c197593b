"""From an option file and the command line to the options that a run works with."""

import argparse
import os
import random
import re
from pathlib import Path
from typing import Any

import yaml

from dlgsanet.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that BasicSR's users know, and ``--data_root``."""
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="change options of the file, e.g. train:ema_decay=0.99 datasets:train:batch_size_per_gpu=4",
    )
    parser.add_argument(
        "--data_root", metavar="DIR", help="folder that stands for `datasets/` in the file's relative data roots"
    )
    parser.add_argument("--debug", action="store_true", help="a short run: validate, log and save often")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="how ranks start")
    parser.add_argument("--local_rank", type=int, default=0, help="ignored; older launchers pass it")


def read_options(args: argparse.Namespace, is_train: bool) -> dict[str, Any]:
    """Read, check and complete an option file.

    Args:
        args: as parsed by a parser with `add_arguments`.
        is_train: whether the file is for training or for testing.

    Returns:
        The options with what BasicSR's classes expect beside them: `rank`, `world_size`, `dist`, `manual_seed`,
        `num_gpu` (no more than there are), `phase` and `scale` of every data set, and the run's folders under the
        working folder in `path`.

    Raises:
        UserError: the file cannot be read, or has faults, all of which are named, a line each.
    """
    options = load_yaml(args.opt)
    for assignment in args.force_yml:
        _assign(options, assignment)
    check_options(options, is_train, args.opt)
    _relocate_data(options, args.data_root)
    _check_files(options, args.opt)
    return _complete(options, args, is_train)


def check_options(options: dict[str, Any], is_train: bool, source: str | os.PathLike) -> None:
    """Raise a UserError that lists every fault of the options, a line each."""
    from dlgsanet.options.sections import option_file

    _raise(source, [fault.removeprefix(".") for fault in option_file(is_train)("", options)])


def _raise(source: str | os.PathLike, faults: list[str]) -> None:
    if len(faults) == 1:
        raise UserError(f"{source}: {faults[0]}")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{source} has {len(faults)} faults:\n{listed}")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands more than once", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _ValueLoader(_Loader):
    """On the command line 1e-3 is a number, which YAML 1.1 wants written 1.0e-3. In quotes it is text there too."""


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_ValueLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """An option file as nested dictionaries.

    Raises:
        UserError: no such file, not YAML, or a key that stands twice.
    """
    try:
        options = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); -opt names an option file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; -opt names an option file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise UserError(f"{path}: holds no options")
    return options


def _assign(options: dict[str, Any], assignment: str) -> None:
    """``a:b=value`` sets options["a"]["b"], value being read as YAML."""
    keys, equals, value = assignment.partition("=")
    *sections, last = keys.strip().split(":")
    if not equals or not last:
        raise UserError(f"--force_yml {assignment}: write KEY:KEY=VALUE, e.g. train:ema_decay=0.99")
    for key in sections:
        if not isinstance(options.get(key), dict):
            raise UserError(f"--force_yml {assignment}: the option file has no section {key}")
        options = options[key]
    try:
        options[last] = yaml.load(value, Loader=_ValueLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--force_yml {assignment}: the value is not valid YAML") from error


def _relocate_data(options: dict[str, Any], data_root: str | None) -> None:
    for dataset in options["datasets"].values():
        for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
            if path := dataset.get(key):
                path = Path(path).expanduser()
                if data_root and path.parts[:1] == ("datasets",):
                    path = Path(data_root, *path.parts[1:])
                dataset[key] = str(path)
    for key, path in options["path"].items():
        if path and key.startswith(("pretrain_network", "resume_state")):
            options["path"][key] = str(Path(path).expanduser())


def _check_files(options: dict[str, Any], source: str) -> None:
    faults = []
    for name, dataset in options["datasets"].items():
        for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
            path = dataset.get(key)
            if path and not Path(path).exists():
                hint = (
                    "" if key == "meta_info_file" else "; make it with `dlgsanet data`, or name another by --data_root"
                )
                faults.append(f"datasets.{name}.{key}: there is no {path}{hint}")
    for key, path in options["path"].items():
        if path and key.startswith(("pretrain_network", "resume_state")) and not Path(path).is_file():
            faults.append(f"path.{key}: there is no file {path}")
    _raise(source, faults)


def _complete(options: dict[str, Any], args: argparse.Namespace, is_train: bool) -> dict[str, Any]:
    import torch
    from basicsr.utils.dist_util import get_dist_info

    options["is_train"] = is_train
    options["auto_resume"] = getattr(args, "auto_resume", False)
    options["rank"], options["world_size"] = get_dist_info()
    options["dist"] = torch.distributed.is_available() and torch.distributed.is_initialized()
    options.setdefault("manual_seed", random.SystemRandom().randint(1, 10000))
    gpus = torch.cuda.device_count()
    wanted = options.get("num_gpu", "auto")
    options["num_gpu"] = gpus if wanted == "auto" else min(wanted, gpus)

    for name, dataset in options["datasets"].items():
        dataset["phase"] = name.split("_")[0]
        dataset["scale"] = options["scale"]
        dataset["manual_seed"] = options["manual_seed"]
    for where, key in (("train", "total_iter"), ("val", "val_freq"), ("logger", "save_checkpoint_freq")):
        if key in options.get(where, {}):
            options[where][key] = int(options[where][key])  # published files write !!float 5e3
    if args.debug:
        _shorten(options, is_train)
    root = Path.cwd() / ("experiments" if is_train else "results") / options["name"]
    options["root_path"] = str(Path.cwd())
    options["path"] |= {"log": str(root), "visualization": str(root / "visualization")}
    if is_train:
        states = str(root / "training_states")
        options["path"] |= {"experiments_root": str(root), "models": str(root / "models"), "training_states": states}
    else:
        options["path"] |= {"results_root": str(root)}
    return options


def _shorten(options: dict[str, Any], is_train: bool) -> None:
    if not options["name"].startswith("debug"):
        options["name"] = f"debug_{options['name']}"
    if is_train:
        options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 8}
        if "val" in options:
            options["val"]["val_freq"] = 8
