"""A training run from its option file to its exit code."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.utils import make_exp_dirs, mkdir_and_rename, set_random_seed

import dlgsanet.plugin  # noqa: F401  # registers what is ours
from dlgsanet.data.cached_paired_dataset import PAIRED_SETS, pairs_by_root
from dlgsanet.data.pairs import (
    check_metrics,
    check_sizes,
    refuse_other_files,
    refuse_other_pairs,
    refuse_other_sizes,
)
from dlgsanet.distributed import raised_on_all, ranks, refuse_other_ranks
from dlgsanet.errors import UserError, brief, faults_of, within
from dlgsanet.files import check_can_write, printable
from dlgsanet.folder_lock import owned
from dlgsanet.memory import is_out_of_memory
from dlgsanet.models.build import build_model
from dlgsanet.signals import StopSignals
from dlgsanet.training.board import Board, start_wandb
from dlgsanet.training.branch import Branch
from dlgsanet.training.checkpoints import Checkpoints
from dlgsanet.training.conditions import conditions, in_force, of_all_ranks, refuse_other_run
from dlgsanet.training.introduction import introduce
from dlgsanet.training.loader import LoadingError, endless_loader, start_server
from dlgsanet.training.loop import Loop
from dlgsanet.training.messages import log_to_file, start_logging
from dlgsanet.training.record import write_record
from dlgsanet.training.resume import Position, checkpoint_to_resume, keeps_random_state, restore
from dlgsanet.training.samples import SampleStream, SeededSamples, read_sample, unopened
from dlgsanet.training.trial import batch_of, try_network, try_validation
from dlgsanet.training.validation import ValidationSet, score

FIRST_SAMPLES = 400  # from which `train.network_init` computes weights


def train(
    options: dict[str, Any],
    launcher: str = "none",
    signals: StopSignals | None = None,
    branch: Branch | None = None,
    same_options: bool = False,
) -> int:
    """Train as the options say.

    Args:
        options: of `dlgsanet.options.read.read_options`.
        launcher: how the ranks were started: `none`, `pytorch` or `slurm`.
        signals: those that may stop the run. None: signals are not handled.
        branch: train this decay branch of the run instead.
        same_options: refuse to continue a run that began with other options, images or weights.

    Returns:
        0 at the end, 75 or 130 when a signal stopped the run (`dlgsanet.signals`).

    Raises:
        UserError: something that the user can fix, or another run owns the experiment's folder. Where there is a
            checkpoint, the message names the last good one.
    """
    with ranks(launcher, options), ExitStack() as stack:
        if branch:
            options = branch.options(options)
        stack.enter_context(_folder_of(options))
        network = options["network_g"] if options["logger"]["save_safetensors"] else None
        root = Path(options["path"]["experiments_root"])
        checkpoints = Checkpoints(root, options["logger"]["keep_last"], network)
        try:
            return _build(options, checkpoints, same_options).run(signals or StopSignals())
        except LoadingError as error:
            raise UserError(f"{error}; {checkpoints.last_good()}") from None
        except OSError as error:  # a full disk may show first where TensorBoard writes
            where = error.filename or f"a file in {options['root_path']}"
            raise UserError(f"{where}: {error.strerror}; {checkpoints.last_good()}") from error
        except RuntimeError as error:
            if reason := _not_of_this_process(error, options) or _out_of_memory(error) or _unused(error):
                raise UserError(f"{reason}; {checkpoints.last_good()}") from error
            raise


@contextmanager
def _folder_of(options: dict[str, Any]) -> Iterator[None]:
    """Own the experiment's folder, before anything in it is touched. Rank 0 does so for all."""
    with ExitStack() as stack:
        with raised_on_all():
            if options["rank"] == 0:
                stack.enter_context(owned(Path(options["path"]["experiments_root"])))
        yield


def _not_of_this_process(error: RuntimeError, options: dict[str, Any]) -> str | None:
    """What happened to another rank that this one waits for. None: the error is about something else."""
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    if not options["dist"] or not any(sign in str(error) for sign in signs):
        return None
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return "another rank has not answered for as long as dist_params.timeout says"
    return "another rank has died; what it said is above, or in its own log"


def _out_of_memory(error: RuntimeError) -> str | None:
    if not is_out_of_memory(error):
        return None
    smaller = "datasets.train.batch_size_per_gpu, gt_size or patches_per_image, or network_g"
    return f"memory ran out ({brief(error, 200)}); give smaller values of {smaller}"


def _unused(error: RuntimeError) -> str | None:
    """What DistributedDataParallel says of parameters without a gradient."""
    if "Expected to have finished reduction" not in str(error):
        return None
    return "network_g: not every pass uses all parameters; several ranks then need find_unused_parameters: true"


def _build(options: dict[str, Any], checkpoints: Checkpoints, same_options: bool) -> Loop:
    if options["datasets"]["train"]["num_worker_per_gpu"]:
        start_server()  # it imports while the data are checked
    with within(options["option_file"]):
        checkpoint = checkpoint_to_resume(options, checkpoints)
    refuse_other_ranks({"the checkpoint to resume": checkpoint and checkpoint.iteration})
    before = checkpoint.state.get("conditions", {}) if checkpoint else {}
    if options["seed_is_drawn"]:
        options["manual_seed"] = before.get("manual_seed", options["manual_seed"])
    set_random_seed((options["manual_seed"] + options["rank"]) % 2**32)
    _choose_kernels(options["train"]["deterministic"])
    line = start_logging(options["rank"])
    # What may be wrong with data and weights is found before an older run of this name is renamed, or its checkpoints.
    with raised_on_all(), within(options["option_file"]):
        train_set, validation_sets = data_sets(options)
    with within(options["option_file"]):
        with faults_of(options["model_type"]):
            model = build_model(_without_start(options) if checkpoint else options)
        epoch_length = len(train_set) * options["datasets"]["train"]["dataset_enlarge_ratio"]
        with keeps_random_state():
            sample = next(first_samples(options, train_set, epoch_length))
            with within("datasets.train"):
                batch = batch_of(sample, options, originals=True)
            try_network(model, options, batch)
            for images in validation_sets:
                try_validation(model, options, images.name, images.dataset[images.hardest])
        if options["train"]["network_init"] != "random" and not checkpoint:
            model.compute_weights(first_samples(options, train_set, epoch_length))
    batch_size = _batch_of_a_rank(options) * options["world_size"]
    now = conditions(options, train_set, batch_size)
    refuse_other_ranks(of_all_ranks(now) | {"validation images": [len(images) for images in validation_sets]})
    own = checkpoint if checkpoint and checkpoint.root.resolve() == checkpoints.root.resolve() else None
    position = Position()
    with raised_on_all():  # no rank continues before the folders exist
        if same_options and before and options["rank"] == 0:
            refuse_other_run(before, now, checkpoints.root)
        if checkpoint:
            with within(options["option_file"]):
                position = restore(model, checkpoint, options["rank"], epoch_length)
            if own is None or checkpoints.best() not in (None, position.best.get("iteration")):
                position.best = {}  # those weights are in another run's folder, or were overwritten
        start_wandb(options)
        if own is None:  # it begins, perhaps from another run's checkpoint
            _make_folders(options)
        elif options["rank"] == 0:
            checkpoints.set_aside(after=own.iteration)
        if options["rank"] == 0:
            log_to_file(checkpoints.root)
    introduce(options, validation_sets, batch_size, epoch_length, position, before, now)
    write_record(options, position.iteration)
    return Loop(
        options,
        model,
        batches_of(options, train_set, epoch_length, position),
        batch_size,
        epoch_length,
        validation_sets,
        checkpoints,
        Board(options, position),
        line,
        position,
        in_force(before, now),
    )


def _without_start(options: dict[str, Any]) -> dict[str, Any]:
    """The options without the weights that a run started from, if their file is no longer there."""
    path = options["path"]
    if not (start := path.get("pretrain_network_g")) or Path(start).is_file():
        return options
    return options | {"path": path | {"pretrain_network_g": None}}


def _choose_kernels(deterministic: bool) -> None:
    """Let cuDNN time its kernels and take the fastest. Deterministic: use only kernels that sum in a fixed order."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses


def _make_folders(options: dict[str, Any]) -> None:
    board = Path(options["root_path"], "tb_logger", options["name"])
    if options["rank"] == 0:
        if options["logger"]["use_tb_logger"]:
            check_can_write(board / "events")
        for folder in (Path(options["path"]["experiments_root"]), board):
            # BasicSR renames to the second: runs that follow each other fast would get one name.
            while Path(f"{folder}_archived_{time.strftime('%Y%m%d_%H%M%S')}").exists():
                time.sleep(0.1)
    make_exp_dirs(options)  # on rank 0; an older run of this name is renamed, not overwritten
    if options["rank"] == 0 and board.exists():
        mkdir_and_rename(str(board))


def _batch_of_a_rank(options: dict[str, Any]) -> int:
    return options["datasets"]["train"]["batch_size_per_gpu"] * options["train"]["accumulate"]


def data_sets(options: dict[str, Any]) -> tuple[Any, list[ValidationSet]]:
    """The training set and the validation sets of a run.

    Raises:
        UserError: images are missing, damaged or of the wrong size; the message names the data set.
    """
    train_set, validation_sets = None, []
    for key, opt in options["datasets"].items():
        opt["manual_seed"] = options["manual_seed"]
        with within(f"datasets.{key}"):
            metrics = {} if opt["phase"] == "train" else options["val"]["metrics"] or {}
            data_set, hardest = _data_set(opt, metrics)
            if opt["phase"] != "train":
                batch_of(read_sample(data_set, hardest), options, originals=bool(metrics))
        if opt["phase"] == "train":
            train_set = data_set
        else:
            share, normalisation = (options["rank"], options["world_size"]), (opt.get("mean"), opt.get("std"))
            validation_sets.append(ValidationSet(data_set, opt["name"], hardest, *share, *normalisation))
    return train_set, validation_sets


def first_samples(options: dict[str, Any], train_set: Any, epoch_length: int) -> Iterator[Any]:
    """The first `FIRST_SAMPLES` samples of a run."""
    seed = options["manual_seed"]
    stream, samples = SampleStream(epoch_length, 1, seed), SeededSamples(unopened(train_set), seed)
    return (samples[stream.key(number)] for number in range(FIRST_SAMPLES))


def _data_set(opt: dict[str, Any], metrics: dict[str, Any]) -> tuple[Any, int]:
    """A data set of the options, and the index of an image whose size few networks take without padding it.

    If it is one of pairs, all of them and the metrics are tried first.
    """
    pairs, hardest = [], 0
    if opt["type"] in PAIRED_SETS:
        pairs = [pair for part in pairs_by_root(opt) for pair in part]
        sizes = check_sizes(pairs, opt["scale"], opt.get("gt_size", 1) // opt["scale"])
        smallest = min(zip(sizes[::2], pairs, strict=True), key=lambda pair: min(pair[0]))[1]
        check_metrics({name: partial(score, metric=entry) for name, entry in metrics.items()}, smallest, opt["scale"])
        # Networks that do not pad need multiples of their windows and strides, mostly powers of 2.
        hardest = min(range(len(pairs)), key=lambda index: math.gcd(*sizes[2 * index + 1], 64))
    if opt["type"] == "PairedImageDataset":
        refuse_other_files(opt)
        if opt["phase"] == "train":
            refuse_other_sizes(pairs, sizes, opt["scale"])
    with faults_of(opt["type"]):
        data_set = build_dataset(opt)
        if not len(data_set):
            raise UserError(f"{opt['type']}: it has no samples")
    if opt["type"] == "PairedImageDataset":
        refuse_other_pairs(pairs, (paths["gt_path"] for paths in data_set.paths))
        # BasicSR lists a folder in its own order, which is another one on another disk.
        place = {pair.name: number for number, pair in enumerate(pairs)}
        data_set.paths.sort(key=lambda paths: place[printable(Path(paths["gt_path"]).stem)])
    return data_set, hardest


def batches_of(options: dict[str, Any], train_set: Any, epoch_length: int, position: Position) -> Any:
    """This rank's endless batches from a position on; see `endless_loader`."""
    opt = options["datasets"]["train"]
    stream = SampleStream(
        epoch_length,
        _batch_of_a_rank(options),
        options["manual_seed"],
        position.samples,
        options["rank"],
        options["world_size"],
        opt["use_shuffle"],
    )
    seeded = SeededSamples(train_set, options["manual_seed"])
    return endless_loader(seeded, opt, stream, opt["num_worker_per_gpu"])
