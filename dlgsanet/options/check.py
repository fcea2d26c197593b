"""The check of a whole option file: each option by the table, then what must fit together."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dlgsanet.options.kinds import inside, phase_of, shown, unknown
from dlgsanet.options.table import LOSSES, OURS, TEST_FILE, TRAIN, TRAINING_FILE

# What the models of BasicSR take.
_OF_BASICSR = {"optim_g": ("Adam",), "scheduler": ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR")}

# Bounds that no real file meets.
MOST_VALUES, DEEPEST, LONGEST_TEXT, LARGEST_NUMBER = 5000, 20, 4096, 2**63

# BasicSR's models and data sets that our loop can run. Others need discriminators, video, or degradations.
_FROM_BASICSR = {
    "MODEL": {"SRModel", "SwinIRModel"},
    "DATASET": {"PairedImageDataset", "SingleImageDataset", "RealESRGANPairedDataset"},
}


def faults_of_options(options: Any, is_train: bool) -> list[str]:
    """Every fault of a training or test file, a line each."""
    if faults := [*_not_plain("", options, [MOST_VALUES], DEEPEST)]:
        return faults
    if faults := [*(TRAINING_FILE if is_train else TEST_FILE).faults("", options, registry)]:
        return faults
    return [*_not_fitting(options)]


def registry(name: str) -> Mapping[str, Callable[..., Any]]:
    """What options may name in BasicSR's registry ARCH, DATASET, LOSS, METRIC or MODEL, or as OPTIMIZER or SCHEDULER.

    Ours and those of other plugins are included; models and data sets of BasicSR that cannot be run here are not.
    """
    import dlgsanet.plugin  # noqa: F401, I001  # registers ours
    from basicsr.utils import registry as registries
    from dlgsanet.models.optimization import optimizers, schedulers

    if name in ("OPTIMIZER", "SCHEDULER"):
        return optimizers() if name == "OPTIMIZER" else schedulers()
    every = dict(iter(getattr(registries, f"{name}_REGISTRY")))
    offered = _FROM_BASICSR.get(name, every)
    return {key: value for key, value in every.items() if key in offered or not value.__module__.startswith("basicsr.")}


def _not_plain(where: str, value: Any, values_left: list[int], depth: int) -> Iterator[str]:
    """Faults of values that no option has: the checks of the table need not expect them."""
    values_left[0] -= 1
    if values_left[0] < 0 or depth < 0:
        if values_left[0] in (-1, 0) or depth < 0:
            yield f"{where[:100]}: more than {MOST_VALUES} values, or more than {DEEPEST} sections in each other"
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not 0 < len(key) <= 100 or not key.isprintable():
                yield f"{where or 'file'}: {shown(key)} is not the name of an option"
            else:
                yield from _not_plain(inside(where, key), item, values_left, depth - 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _not_plain(f"{where}[{i}]", item, values_left, depth - 1)
    elif isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            yield f"{where}: a text of {len(value)} characters is too long; at most {LONGEST_TEXT} are allowed"
    elif isinstance(value, (int, float)):
        if not abs(value) < LARGEST_NUMBER:  # nan is not either
            size = "a number that is too large" if isinstance(value, int) or math.isinf(value) else "not a number"
            yield f"{where}: is {size}"
    elif value is not None:
        yield f"{where}: {shown(value)} is {type(value).__name__}; only numbers, text, true, false and ~ are values"


def _not_fitting(options: dict[str, Any]) -> Iterator[str]:
    """Faults between options that are right by themselves."""
    yield from _network(options)
    yield from _data_sets(options)
    if "train" in options:
        yield from _training(options)
    yield from _best(options)


def _network(options: dict[str, Any]) -> Iterator[str]:
    network, scale = options["network_g"], options["scale"]
    if network["type"] == "DLGSANet":
        from dlgsanet.archs.dlgsanet import DLGSANet
        from dlgsanet.archs.options import check_network_options

        defaults = {name: p.default for name, p in inspect.signature(DLGSANet).parameters.items()}
        yield from (f"network_g.{fault}" for fault in check_network_options(defaults | network))
    if network.get("upscale", scale) != scale:
        yield f"network_g.upscale: is {shown(network['upscale'])}, but scale is {scale}"


def _data_sets(options: dict[str, Any]) -> Iterator[str]:
    scale = options["scale"]
    for name, data_set in options["datasets"].items():
        yield from _roots(f"datasets.{name}", data_set)
        if isinstance(data_set.get("gt_size"), int) and data_set["gt_size"] % scale:
            yield f"datasets.{name}.gt_size: {data_set['gt_size']} is not a multiple of scale, {scale}"
    validation = [data_set.get("name", "") for name, data_set in options["datasets"].items() if phase_of(name) == "val"]
    for name in sorted({name for name in validation if validation.count(name) > 1}):
        yield f"datasets: two validation sets are called {name}; give each a name of its own"


def _roots(where: str, data_set: Mapping[str, Any]) -> Iterator[str]:
    gt, lq, shares = (data_set.get(key) for key in ("dataroot_gt", "dataroot_lq", "shares"))
    counts = [len(value) if isinstance(value, list) else None for value in (gt, lq)]
    if counts[0] != counts[1] or 0 in counts:
        yield f"{where}.dataroot_lq: give as many roots as dataroot_gt has, in the same order"
    if shares is not None and len(shares) != counts[0]:
        yield f"{where}.shares: give one share for each root in the list dataroot_gt"
    elif shares is not None and abs(sum(shares) - 1) > 1e-6:
        yield f"{where}.shares: their sum is {sum(shares):g}; it must be 1"


def _training(options: dict[str, Any]) -> Iterator[str]:
    train = options["train"]
    losses = [option.name for option in LOSSES]
    if not any(train.get(name) for name in losses):
        yield f"train: names no loss; set one of {', '.join(losses)}"
    for option in TRAIN.options:
        if option.only and option.name in train and options["model_type"] != option.only:
            yield f"train.{option.name}: {options['model_type']} would ignore it; set model_type: {OURS}"
    if train.get("network_init") == "linear":
        yield from _linear_start(options)
    if train.get("teacher_opt") and not train.get("pixel_opt"):
        yield "train.teacher_opt: pixel_opt compares with the teacher; set it"
    # Schedules that have an end must not reach it before the run: they fail there.
    schedule = train["scheduler"]
    ends = {"CosineAnnealingRestartLR": sum(schedule.get("periods", [])), "OneCycleLR": schedule.get("total_steps")}
    end = ends.get(schedule["type"])
    if end and end < train["total_iter"]:
        yield f"train.scheduler: ends at iteration {end}, before train.total_iter, {train['total_iter']}"
    if options["model_type"] == OURS:
        from dlgsanet.models.optimization import optimization_faults

        yield from optimization_faults(train)
    for section, types in _OF_BASICSR.items():
        given = train[section]["type"]
        if options["model_type"] in _FROM_BASICSR["MODEL"] and given not in types:
            yield f"train.{section}: {options['model_type']} has no {given}; set model_type: {OURS}"


def _linear_start(options: dict[str, Any]) -> Iterator[str]:
    where, network = "train.network_init: linear", options["network_g"]
    for key in ("pretrain_network_g", "resume_state"):
        if options["path"].get(key):
            yield f"{where} starts from random weights; remove it or path.{key}"
    if network["type"] != "DLGSANet" or network.get("upsampler") != "pixelshuffledirect":
        yield f"{where} needs network_g: {{type: DLGSANet, upsampler: pixelshuffledirect}}"
    elif 9 * network.get("dim", 60) < 25 * network.get("in_chans", 3):
        yield f"{where} needs a network_g.dim of at least {math.ceil(25 * network.get('in_chans', 3) / 9)}"


def _best(options: dict[str, Any]) -> Iterator[str]:
    val = options.get("val") or {}
    best, metrics = val.get("best") or {}, val.get("metrics") or {}
    names = [data_set.get("name") for name, data_set in options["datasets"].items() if phase_of(name) == "val"]
    if "dataset" in best and best["dataset"] not in names:
        yield f"val.best.dataset: {unknown('dataset', best['dataset'], names)}"
    if "metric" in best and best["metric"] not in metrics:
        yield f"val.best.metric: {unknown('metric', best['metric'], metrics)}"
