"""The sections of an option file: every key that training and testing read."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dlgsanet.options.schema import (
    Check,
    anything,
    flag,
    list_of,
    number,
    one_of,
    optional,
    registered,
    section,
    text,
    whole,
)

# Data sets of other types are registered by other plugins, whose keys we cannot know.
_IO_BACKEND = section({"type": one_of("disk", "lmdb")}, required=["type"])
_PAIRED: dict[str, Check] = {
    "name": text,
    "type": text,
    "dataroot_gt": text,
    "dataroot_lq": text,
    "meta_info_file": optional(text),
    "filename_tmpl": text,
    "io_backend": _IO_BACKEND,
    "mean": optional(list_of(number())),
    "std": optional(list_of(number())),
    "color": one_of("y"),
}
_TRAINING: dict[str, Check] = {
    "gt_size": whole(1),
    "use_hflip": flag,
    "use_rot": flag,
    "use_shuffle": flag,
    "num_worker_per_gpu": whole(0),
    "batch_size_per_gpu": whole(1),
    "dataset_enlarge_ratio": whole(1),
    "prefetch_mode": optional(one_of("cpu", "cuda")),
    "num_prefetch_queue": whole(1),
    "pin_memory": flag,
    "persistent_workers": flag,
}
DATASET_KEYS: dict[str, dict[str, Check]] = {
    "PairedImageDataset": _PAIRED,
    "CachedPairedImageDataset": _PAIRED | {"cache_dir": optional(text)},
    "SingleImageDataset": {key: _PAIRED[key] for key in ("name", "type", "dataroot_lq", "io_backend", "mean", "std")},
}
TRAINING_KEYS: dict[str, dict[str, Check]] = {"CachedPairedImageDataset": {"patches_per_image": whole(1)}}


def _dataset(training: bool) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {value!r}"
            return
        known = registry("DATASET")
        if value.get("type") not in known:
            yield from one_of(*sorted(known))(f"{where}.type", value.get("type"))
        elif keys := DATASET_KEYS.get(value["type"]):
            required: list[str] = [key for key in ("name", "dataroot_gt", "dataroot_lq", "io_backend") if key in keys]
            required += ["gt_size", "batch_size_per_gpu", "num_worker_per_gpu"] if training else []
            keys = keys | _TRAINING | TRAINING_KEYS.get(value["type"], {}) if training else keys
            yield from section(keys, required)(where, value)

    return check


def _datasets(is_train: bool) -> Check:
    def check(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: a section is expected, found {value!r}"
            return
        for name, dataset in value.items():
            phase = str(name).split("_")[0]
            if phase not in (("train", "val") if is_train else ("val", "test")):
                allowed = "train, val, val_1, ..." if is_train else "test, test_1, ... (or val)"
                yield f"{where}.{name}: unknown data set phase (allowed: {allowed})"
            else:
                yield from _dataset(phase == "train")(f"{where}.{name}", dataset)
        if is_train and "train" not in value:
            yield f"{where}.train: is missing"
        if not value:
            yield f"{where}: names no data set"

    return check


def registry(name: str) -> Mapping[str, Callable]:
    """What is registered in BasicSR's registry of that name (ARCH, DATASET, LOSS, METRIC, MODEL), ours included."""
    import dlgsanet.plugin  # noqa: F401, I001  # registers ours
    from basicsr.utils import registry as registries

    return dict(iter(getattr(registries, f"{name}_REGISTRY")))


def _optimizers() -> Mapping[str, Callable]:
    from dlgsanet.models.optimization import optimizers

    return optimizers()


def _schedulers() -> Mapping[str, Callable]:
    from dlgsanet.models.optimization import schedulers

    return schedulers()


def _network(where: str, value: Any) -> Iterator[str]:
    faults = [*registered(lambda: registry("ARCH"))(where, value)]
    yield from faults
    if not faults and value["type"] == "DLGSANet":
        from dlgsanet.archs.dlgsanet import DLGSANet
        from dlgsanet.archs.options import check_network_options

        defaults = {p.name: p.default for p in inspect.signature(DLGSANet).parameters.values()}
        yield from (f"{where}.{fault}" for fault in check_network_options(defaults | value))


def _metrics(where: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: a section is expected, found {value!r}"
        return
    check = registered(lambda: registry("METRIC"), given=("img", "img2"), extra=("better",))
    for name, metric in value.items():
        yield from check(f"{where}.{name}", metric)
        if isinstance(metric, dict) and "better" in metric:
            yield from one_of("higher", "lower")(f"{where}.{name}.better", metric["better"])


LOSSES = ("pixel_opt", "fft_opt", "perceptual_opt")


def _loss(where: str, value: Any) -> Iterator[str]:
    yield from registered(lambda: registry("LOSS"))(where, value)
    if isinstance(value, dict) and "reduction" in value:
        yield from one_of("mean", "sum")(f"{where}.reduction", value["reduction"])


_LOSS = optional(_loss)

_PATH = section(
    {
        "pretrain_network_g": optional(text),
        "param_key_g": optional(one_of("params", "params_ema")),
        "strict_load_g": flag,
        "resume_state": optional(text),
        "ignore_resume_networks": optional(list_of(text)),
    }
)
_VAL: dict[str, Check] = {
    "save_img": flag,
    "suffix": optional(text),
    "pbar": flag,
    "metrics": optional(_metrics),
}
_VAL_IN_TRAINING: dict[str, Check] = {"val_freq": whole(1), "best": section({"dataset": text, "metric": text})}
# Options of our own model's training step, which other models would ignore.
OWN_STEP: dict[str, Check] = {
    "fft_opt": _LOSS,
    "precision": one_of("fp32", "bf16", "fp16"),
    "compile": one_of(True, False, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "channels_last": flag,
    "accumulate": whole(1),
    "grad_clip": optional(number(0)),
    "max_bad_steps": whole(1),
}
_TRAIN = section(
    {
        "ema_decay": number(0, 1),
        "optim_g": registered(_optimizers, given=("params",)),
        "scheduler": registered(_schedulers, given=("optimizer",)),
        "total_iter": whole(1),
        "warmup_iter": whole(-1),
        "deterministic": flag,
        **dict.fromkeys(LOSSES, _LOSS),
        **OWN_STEP,
    },
    required=["optim_g", "scheduler", "total_iter"],
)
_LOGGER = section(
    {
        "print_freq": whole(1),
        "save_checkpoint_freq": whole(1),
        "save_checkpoint_minutes": number(0),
        "keep_last": whole(2),
        "use_tb_logger": flag,
        "wandb": optional(section({"project": optional(text), "resume_id": optional(text)})),
    },
    required=["print_freq", "save_checkpoint_freq", "use_tb_logger"],
)
_DIST = section({"backend": one_of("nccl", "gloo"), "port": whole(1, 65535), "timeout": number(1)})

_COMMON: dict[str, Check] = {
    "name": text,
    "scale": whole(1),
    "num_gpu": lambda where, value: iter(()) if value == "auto" else whole(0)(where, value),
    "manual_seed": whole(0, 2**32 - 1),
    "network_g": _network,
    "path": _PATH,
    "dist_params": _DIST,
    "find_unused_parameters": flag,
}


def _model_type(where: str, value: Any) -> Iterator[str]:
    yield from one_of(*sorted(registry("MODEL")))(where, value)


def option_file(is_train: bool) -> Check:
    """The check of a whole option file."""
    keys = _COMMON | {"model_type": _model_type, "datasets": _datasets(is_train)}
    required = ["name", "model_type", "scale", "datasets", "network_g", "path"]
    if is_train:
        keys |= {"train": _TRAIN, "logger": _LOGGER, "val": section(_VAL | _VAL_IN_TRAINING, ["val_freq"])}
        required += ["train", "logger"]
    else:
        keys |= {"val": section(_VAL), "logger": anything}
        required += ["val"]
    sections = section(keys, required)

    def check(where: str, value: Any) -> Iterator[str]:
        faults = [*sections(where, value)]
        yield from faults
        if not faults:
            yield from _check_fit(value)

    return check


def _check_fit(options: dict[str, Any]) -> Iterator[str]:
    """Faults between sections that are right by themselves."""
    scale, upscale = options["scale"], options["network_g"].get("upscale")
    if upscale is not None and upscale != scale:
        yield f"network_g.upscale: is {upscale}, but scale is {scale}"
    for name, dataset in options["datasets"].items():
        if dataset.get("gt_size", scale) % scale:
            yield f"datasets.{name}.gt_size: {dataset['gt_size']} is not a multiple of scale, {scale}"
    if "train" in options and not any(options["train"].get(key) for key in LOSSES):
        yield f"train: names no loss; set one of {', '.join(LOSSES)}"
    if options["model_type"] != "DLGSANetModel":
        for key in OWN_STEP:
            if key in options.get("train", {}):
                yield f"train.{key}: {options['model_type']} would ignore it; set model_type: DLGSANetModel"
    if "train" in options:
        yield from _check_schedule(options["train"])
    yield from _check_best(options)


def _check_schedule(train: dict[str, Any]) -> Iterator[str]:
    """Schedules that have an end must not reach it before the run: they fail there."""
    schedule = train["scheduler"]
    ends = {"CosineAnnealingRestartLR": sum(schedule.get("periods", [])), "OneCycleLR": schedule.get("total_steps")}
    end = ends.get(schedule["type"])
    if end and end < train["total_iter"]:
        yield f"train.scheduler: ends at iteration {end}, before train.total_iter, {train['total_iter']}"


def _check_best(options: dict[str, Any]) -> Iterator[str]:
    val = options.get("val") or {}
    best = val.get("best") or {}
    names = [opt["name"] for key, opt in options["datasets"].items() if key.startswith("val")]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"datasets: two validation sets are called {name}; give each a name of its own"
    if "dataset" in best and best["dataset"] not in names:
        yield from one_of(*names)("val.best.dataset", best["dataset"])
    if "metric" in best and best["metric"] not in (val.get("metrics") or {}):
        yield from one_of(*(val.get("metrics") or {}))("val.best.metric", best["metric"])
