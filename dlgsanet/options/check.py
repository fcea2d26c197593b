"""The check of a whole option file: each option by the table, then what must fit together."""

import inspect
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from dlgsanet.errors import counted, reason_of, shown, unknown
from dlgsanet.options.kinds import Section, inside, phase_of
from dlgsanet.options.table import LOSSES, MODELS, OURS, TEST_FILE, TRAIN, TRAINING_FILE, for_own_model

# What the models of BasicSR take.
_OF_BASICSR = {"optim_g": ("Adam",), "scheduler": ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR")}

# Bounds that no real file meets.
MOST_VALUES, DEEPEST, LONGEST_TEXT, LARGEST_NUMBER = 5000, 20, 4096, 2**63
LONGEST_FAULT = 1000  # characters of a line; the longest list of types has 700
BELOW_BICUBIC = "below_bicubic"
_COLUMNS = (BELOW_BICUBIC, "data set", "image", "method")  # what stands next to the metrics in TensorBoard and tables

# BasicSR's models and data sets that our loop can run. Others need discriminators, video, or degradations.
_FROM_BASICSR = {
    "MODEL": {*MODELS} - {OURS},
    "DATASET": {"PairedImageDataset", "SingleImageDataset"},
}
DATA_SETS = ("PairedImageDataset", "CachedPairedImageDataset", "DegradedPairedImageDataset", "SingleImageDataset")


def faults_of_options(options: Any, is_train: bool) -> list[str]:
    """Every fault of a training or test file, a line each."""
    faults = [*_not_plain("", options, [MOST_VALUES], DEEPEST)]
    faults = faults or [*_of_other_command(options, is_train)]
    faults = faults or [*_table(options, is_train).faults("", options, registry)]
    faults = faults or [*_not_fitting(options)]
    return [fault if len(fault) <= LONGEST_FAULT else f"{fault[: LONGEST_FAULT - 3]}..." for fault in faults]


def faults_of_hardware(options: dict[str, Any]) -> list[str]:
    """What complete options need and this machine lacks, a line each."""
    import torch

    train, has_nvidia = options.get("train", {}), options["num_gpu"] > 0 and not torch.version.hip
    faults = []
    if train.get("precision") == "tf32" and not has_nvidia:
        faults.append("train.precision: tf32 needs an NVIDIA GPU, and none is used here; choose fp32 or bf16")
    elif train.get("precision") == "tf32" and (capability := torch.cuda.get_device_capability()) < (8, 0):
        card = "{} (sm_{}{})".format(torch.cuda.get_device_name(), *capability)
        faults.append(f"train.precision: tf32 has no effect on {card}, only from sm_80 on; choose fp32 or fp16")
    if train.get("cuda_graph") is True and not has_nvidia:
        faults.append("train.cuda_graph: needs an NVIDIA GPU, and none is used here; set it to false")
    if train and (options["logger"]["wandb"] or {}).get("project") and not find_spec("wandb"):
        faults.append("logger.wandb: wandb is not installed; pip install wandb, or leave the section out")
    return faults


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
            yield f"{where}: is {'not a number' if value != value else 'a number that is too large'}"
    elif value is not None:
        yield f"{where}: {shown(value)} is {type(value).__name__}; only numbers, text, true, false and ~ are values"


def _table(options: Any, is_train: bool) -> Section:
    table = TRAINING_FILE if is_train else TEST_FILE
    is_own = isinstance(options, dict) and options.get("model_type", OURS) not in MODELS
    return for_own_model(table) if is_own else table


def _of_other_command(options: Any, is_train: bool) -> Iterator[str]:
    data_sets = options.get("datasets") if isinstance(options, dict) else None
    phase = "test" if is_train else "train"
    if isinstance(data_sets, dict) and ("train" in options) != is_train and phase in map(phase_of, data_sets):
        yield f"datasets: has a data set {phase}: give this option file to `dlgsanet {phase}`"


def _not_fitting(options: dict[str, Any]) -> Iterator[str]:
    """Faults between options that are right by themselves."""
    yield from _network(options)
    yield from _data_sets(options)
    if "train" in options:
        yield from _training(options)
        yield from _wandb(options["logger"])
    elif options["path"].get("resume_state"):
        yield "path.resume_state: a test continues no run; remove it, and name the weights in path.pretrain_network_g"
    yield from _metrics(options)
    yield from _best(options)


def _network(options: dict[str, Any]) -> Iterator[str]:
    network, scale = options["network_g"], options["scale"]
    parameters = inspect.signature(registry("ARCH")[network["type"]]).parameters
    for name in ("upscale", "scale"):
        factor = network.get(name, parameters[name].default if name in parameters else scale)
        if factor not in (scale, inspect.Parameter.empty):
            how = "" if name in network else " by default"
            yield f"network_g.{name}: is {shown(factor)}{how}, but scale is {scale}"
            return
    yield from _built("network_g", network)


def _built(where: str, network: dict[str, Any]) -> Iterator[str]:
    """What the class of a network refuses."""
    if network["type"] == "DLGSANet":
        from dlgsanet.archs.dlgsanet import default_options
        from dlgsanet.archs.options import check_network_options

        yield from (f"{where}.{fault}" for fault in check_network_options(default_options() | network))
        return
    import torch

    def faults(network: Mapping[str, Any]) -> Iterator[str]:
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                registry("ARCH")[network["type"]](**{key: value for key, value in network.items() if key != "type"})
        except Exception as error:  # networks check little of what they are given
            yield f"{where}: {network['type']}: {reason_of(error, 200)}"

    yield from (_narrowed(fault, network, faults) for fault in faults(network))


def _narrowed(fault: str, section: Any, faults: Callable[[dict[str, Any]], Iterable[str]]) -> str:
    """A fault of a section with the name of the argument without which it has none, unless the message names it."""
    where, _, reason = fault.partition(": ")
    for key in section if isinstance(section, dict) else ():
        rest = {other: value for other, value in section.items() if other != key}
        if key != "type" and key not in reason and not any(faults(rest)):
            return f"{where}.{key}: {reason}"
    return fault


def _data_sets(options: dict[str, Any]) -> Iterator[str]:
    scale, metrics = options["scale"], (options.get("val") or {}).get("metrics")
    for name, data_set in options["datasets"].items():
        where = f"datasets.{name}"
        yield from _roots(where, data_set)
        if isinstance(data_set.get("gt_size"), int) and data_set["gt_size"] % scale:
            yield f"{where}.gt_size: {data_set['gt_size']} is not a multiple of scale, {scale}"
        if data_set["type"] == "SingleImageDataset" and phase_of(name) == "train":
            yield f"{where}: SingleImageDataset has no originals to train on; choose another type"
        elif data_set["type"] == "SingleImageDataset" and metrics:
            yield f"{where}: has no originals to compute val.metrics with; set type: PairedImageDataset and dataroot_gt"
        if data_set["type"] == "DegradedPairedImageDataset":
            yield from _degradations(name, where, data_set)
        if data_set["type"] in DATA_SETS:
            yield from _channels(options, where, data_set)
    others = {name: data_set for name, data_set in options["datasets"].items() if phase_of(name) != "train"}
    names = [data_set.get("name", "") for data_set in others.values()]
    if others and "train" in options and "val" not in options:
        yield "val: is missing; it says how often to validate (val_freq), and by which metrics"
    for name in sorted({name for name in names if names.count(name) > 1}):
        keys = [key for key, data_set in others.items() if data_set.get("name") == name]
        yield f"datasets: {', '.join(keys)} are called {name}; give each a name of its own"
    scales = [[data_set.get(key) for key in ("mean", "std")] for data_set in options["datasets"].values()]
    whole = all(scale.count(None) != 1 for scale in scales)  # else another line says so
    if "train" in options and whole and any(scale != scales[0] for scale in scales):
        yield "datasets: mean and std differ between data sets; give the same for training and validation"


def _roots(where: str, data_set: Mapping[str, Any]) -> Iterator[str]:
    gt, lq, shares = (data_set.get(key) for key in ("dataroot_gt", "dataroot_lq", "shares"))
    counts = [len(value) if isinstance(value, list) else None for value in (gt, lq)]
    if counts[0] != counts[1] or 0 in counts:
        yield f"{where}.dataroot_lq: give as many roots as dataroot_gt has, in the same order"
    if shares is not None and len(shares) != counts[0]:
        yield f"{where}.shares: give one share for each root in the list dataroot_gt"
    elif shares is not None and abs(sum(shares) - 1) > 1e-6:
        yield f"{where}.shares: their sum is {sum(shares):g}; it must be 1"


def _degradations(name: str, where: str, data_set: Mapping[str, Any]) -> Iterator[str]:
    if phase_of(name) != "train":
        yield f"{where}.type: DegradedPairedImageDataset is for training; choose PairedImageDataset"
    for key, value in (data_set.get("degradations") or {}).items():
        if isinstance(value, list) and value != sorted(value):
            yield f"{where}.degradations.{key}: {shown(value)} must be the least value, then the most"


def _channels(options: dict[str, Any], where: str, data_set: dict[str, Any]) -> Iterator[str]:
    """Faults between the channels of a data set and those that the network takes."""
    network = options["network_g"]
    given = 1 if data_set.get("color") == "y" else 3
    name = "num_in_ch" if "num_in_ch" in network else "in_chans"
    taken = network.get(name, 3 if network["type"] == "DLGSANet" else given)
    if taken != given:
        fix = "set color: y" if given == 3 and taken == 1 else f"set network_g.{name}: {given}"
        yield f"{where}: has images of {counted(given, 'channel')}, but network_g.{name} is {shown(taken)}; {fix}"
    mean, std = data_set.get("mean"), data_set.get("std")
    if (mean is None) != (std is None):
        yield f"{where}: give both mean and std, or neither"
    elif mean is not None and std is not None and (len(mean) != given or len(std) != given or min(std) <= 0):
        yield f"{where}: mean and std must have {given} values each, and those of std must be above 0"


def _training(options: dict[str, Any]) -> Iterator[str]:
    train = options["train"]
    losses = [option.name for option in LOSSES]
    if not any(train.get(name) for name in losses) and options["model_type"] in MODELS:
        yield f"train: names no loss; set one of {', '.join(losses)}"
    for name in losses:
        if train.get(name):
            tried = partial(_loss, f"train.{name}", of_features=name == "perceptual_opt")
            yield from (_narrowed(fault, train[name], tried) for fault in tried(train[name]))
    of_basicsr = options["model_type"] in _FROM_BASICSR["MODEL"]
    for option in TRAIN.options:
        if of_basicsr and option.only and option.name in train:
            yield f"train.{option.name}: {options['model_type']} would ignore it; set model_type: {OURS}"
    if train.get("cuda_graph") is True:
        from dlgsanet.models.cuda_graph import faults_of_cuda_graph

        yield from faults_of_cuda_graph(TRAIN.completed(train))
    if train.get("network_init", "random") != "random":
        yield from _computed_weights(options, train["network_init"])
    if train.get("teacher_opt") and not train.get("pixel_opt"):
        yield "train.teacher_opt: pixel_opt compares with the teacher; set it"
    if train.get("teacher_opt") and any(opt.get("mean") is not None for opt in options["datasets"].values()):
        yield "train.teacher_opt: a teacher takes images in [0, 1]; remove mean and std of the data sets"
    if teacher := (train.get("teacher_opt") or {}).get("network"):
        yield from _built("train.teacher_opt.network", teacher)
    if train.get("ema_warmup") and not train.get("ema_decay"):
        yield "train.ema_warmup: there is no average without ema_decay; set that, or remove ema_warmup"
    if (options.get("val") or {}).get("suffix"):
        yield "val.suffix: is for tests; training names its pictures by their images only; remove it"
    yield from _optimization(options)


def _is_a(model_type: str, base: str) -> bool:
    """Whether a registered model is `base`, or a class that is derived from it."""
    model, parent = (registry("MODEL")[name] for name in (model_type, base))
    return isinstance(model, type) and isinstance(parent, type) and issubclass(model, parent)


def _optimization(options: dict[str, Any]) -> Iterator[str]:
    """Faults of optimizer and schedule."""
    train = options["train"]
    milestones = train["scheduler"].get("milestones", [])
    if milestones != sorted({*milestones}):
        yield f"train.scheduler.milestones: {shown(milestones)} must ascend"
    of_basicsr = options["model_type"] in _FROM_BASICSR["MODEL"]
    unknown_to_it = [name for name, types in _OF_BASICSR.items() if of_basicsr and train[name]["type"] not in types]
    for section in unknown_to_it:
        yield f"train.{section}: {options['model_type']} has no {train[section]['type']}; set model_type: {OURS}"
    if (of_basicsr and not unknown_to_it) or _is_a(options["model_type"], OURS):
        from dlgsanet.models.optimization import optimization_faults

        def faults(name: str, section: dict[str, Any]) -> list[str]:
            return optimization_faults(train | {name: section})

        for fault in optimization_faults(train):
            name = fault.partition(":")[0].removeprefix("train.")
            yield _narrowed(fault, train.get(name), partial(faults, name))


def _wandb(logger: Mapping[str, Any]) -> Iterator[str]:
    wandb = logger.get("wandb") or {}
    if wandb.get("resume_id") and not wandb.get("project"):
        yield "logger.wandb.resume_id: needs logger.wandb.project"
    if wandb.get("project") and not logger["use_tb_logger"]:
        yield "logger.wandb.project: wandb gets what TensorBoard gets; set logger.use_tb_logger: true"


def _computed_weights(options: dict[str, Any], which: str) -> Iterator[str]:
    where, network, path = f"train.network_init: {which}", options["network_g"], options["path"]
    if network["type"] != "DLGSANet" or network.get("upsampler") != "pixelshuffledirect":
        yield f"{where} needs network_g: {{type: DLGSANet, upsampler: pixelshuffledirect}}"
    if which == "last":
        if not path.get("pretrain_network_g"):
            yield f"{where} needs path.pretrain_network_g, for all but the last convolution"
        return
    from dlgsanet.models.linear_start import SIDE

    least = SIDE * options["scale"]
    for name, data_set in options["datasets"].items():
        size = data_set.get("gt_size")
        if phase_of(name) == "train" and isinstance(size, int) and size < least:
            yield f"{where} needs datasets.{name}.gt_size from {least} up, for its filter of {SIDE}x{SIDE} LQ pixels"
    for key in ("pretrain_network_g", "resume_state"):
        if path.get(key):
            yield f"{where} starts from random weights; remove it or path.{key}"
    if 9 * network.get("dim", 60) < 25 * network.get("in_chans", 3):
        yield f"{where} needs a network_g.dim of at least {math.ceil(25 * network.get('in_chans', 3) / 9)}"


def _loss(where: str, section: dict[str, Any], *, of_features: bool) -> Iterator[str]:
    """What a loss refuses: it is tried on two small pictures. One with weights to be downloaded is not tried.

    Equal pictures must have the smaller loss. With a `loss_weight` of 0 or below they do not.
    """
    import torch

    if of_features != (section["type"] == "PerceptualLoss"):
        wanted = "train.perceptual_opt is for PerceptualLoss" if of_features else "set it as train.perceptual_opt"
        yield f"{where}.type: is {section['type']}; {wanted}"
        return
    if not of_features:
        arguments = {key: value for key, value in section.items() if key != "type"}
        pictures = torch.linspace(0.1, 0.9, 2 * 3 * 32 * 32).view(2, 1, 3, 32, 32)
        values = yield from _tried(where, lambda a, b: registry("LOSS")[section["type"]](**arguments)(a, b), *pictures)
        if values and not values[1] < values[0]:
            yield f"{where}: {values[1]:g} for equal pictures, {values[0]:g} for others; it must be less for equal ones"


def _metrics(options: dict[str, Any]) -> Iterator[str]:
    for name, section in ((options.get("val") or {}).get("metrics") or {}).items():
        where = f"val.metrics.{name}"
        tried = partial(_metric, where, is_compared="train" in options)
        yield from (_narrowed(fault, section, tried) for fault in tried(section))
        if name in _COLUMNS:
            yield f"{where}: the results have a column of this name; choose another"


def _metric(where: str, section: dict[str, Any], *, is_compared: bool) -> Iterator[str]:
    """What a metric refuses: it is tried on two pictures. Equal ones show which values are better, which training
    compares."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (2, 208, 208, 3), np.uint8)  # NIQE needs blocks of 96
    arguments = {key: value for key, value in section.items() if key not in ("type", "better")}
    metric = partial(registry("METRIC")[section["type"]], **arguments)
    values = yield from _tried(where, lambda a, b: metric(img=a, img2=b), *images)
    lower = section.get("better") == "lower"
    if values and (values[1] > values[0] if lower else values[1] < values[0]):
        better = "higher" if lower else "lower"
        yield f"{where}.better: {values[1]:g} for equal pictures, {values[0]:g} for others; set better: {better}"
    if values and values[1] == values[0] and is_compared and "better" not in section:
        yield f"{where}: does not compare with originals; set better: lower (as for NIQE) or higher"


def _tried(
    where: str, value_of: Callable[[Any, Any], Any], first: Any, second: Any
) -> Generator[str, None, tuple[float, float] | None]:
    """Yields what is wrong; returns the values for two pictures, and for one and itself, if nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, equal = float(value_of(first, second)), float(value_of(first, first))
    except Exception as error:  # whatever a class does with arguments that it does not check
        yield f"{where}: {reason_of(error, 200)}"
        return None
    if not math.isfinite(value):
        yield f"{where}: gives {value} for two small pictures"
        return None
    return value, equal


def _best(options: dict[str, Any]) -> Iterator[str]:
    val = options.get("val") or {}
    best, metrics = val.get("best") or {}, val.get("metrics") or {}
    names = [data_set.get("name") for name, data_set in options["datasets"].items() if phase_of(name) == "val"]
    if "dataset" in best and best["dataset"] not in names:
        yield f"val.best.dataset: {unknown('dataset', best['dataset'], names)}"
    if "metric" in best and best["metric"] not in metrics:
        yield f"val.best.metric: {unknown('metric', best['metric'], metrics)}"
