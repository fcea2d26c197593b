"""Ablations: variants of the network of one training file, trained in the same way, in one table."""

import copy
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import yaml

from dlgsanet.archs.checkpoint import network_options, read_checkpoint
from dlgsanet.errors import ArgumentError, UserError, unknown, within
from dlgsanet.evaluation.complexity import computed_size, input_size, multiply_accumulates, parameters
from dlgsanet.evaluation.networks import input_channels, network_of, registered_network
from dlgsanet.evaluation.rows import BICUBIC, Row, means
from dlgsanet.evaluation.scoring import bicubic, score, standard_metrics, super_resolve
from dlgsanet.evaluation.tables import Table, figure, terminal_width
from dlgsanet.evaluation.testing import pairs_to_test, sets_to_test
from dlgsanet.extensions import import_all, names_in
from dlgsanet.files import write_whole
from dlgsanet.options.parse import load_yaml
from dlgsanet.options.read import change_option, check_options, read_options
from dlgsanet.signals import INTERRUPTED, REQUEUE, StopSignals, exit_code, run_in_process, signal_name
from dlgsanet.startup import run_command

BASE = "base"  # the variant that changes nothing
# The variants of the paper's network (DLGSANet, section 4.3): a title, and what changes in `network_g`. Those with one
# kind of layer have twice the blocks, so as many layers.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("MHDLSA + SparseGSA (ReLU)", {"activation": "relu"}),
    "topk": ("MHDLSA + SparseGSA (top-k, 0.5)", {"activation": "topk", "topk_ratio": 0.5}),
    "topk25": ("MHDLSA + SparseGSA (top-k, 0.25)", {"activation": "topk", "topk_ratio": 0.25}),
    "topk75": ("MHDLSA + SparseGSA (top-k, 0.75)", {"activation": "topk", "topk_ratio": 0.75}),
    "softmax": ("MHDLSA + attention with softmax", {"activation": "softmax"}),
    "gelu": ("MHDLSA + SparseGSA (GELU)", {"activation": "gelu"}),
    "sigmoid": ("MHDLSA + SparseGSA (sigmoid)", {"activation": "sigmoid"}),
    "static": ("static depth-wise + SparseGSA", {"idynamic": False}),
    "local": ("only local (MHDLSA)", {"buildblock_type": "idynamic"}),
    "global": ("only global (softmax)", {"buildblock_type": "restormer"}),
}
FAULT = 2  # the exit code for what the user has to change
ONE_KIND = ("local", "global")
# Arguments of schedules that are numbers of iterations.
ITERATIONS = ("decay_iter", "total_steps", "total_iters", "step_size", "step_size_up", "step_size_down", "T_0", "T_max")


def variant_options(base: Mapping[str, Any], variant: str, seed: int, iterations: int) -> dict[str, Any]:
    """A training option file for a variant: `base` with another network, seed and number of iterations.

    The schedule of the learning rate is scaled to the iterations. The run validates and saves weights at its end.

    Args:
        variant: one of `VARIANTS`, `BASE`, or changes of `network_g`: ``dim=24`` or ``dim=24,n_blocks=6``, the values
            in YAML.

    Raises:
        UserError: one of `VARIANTS`, and the base file is not of the paper's network, or a change that is not one.
    """
    options: dict[str, Any] = copy.deepcopy(dict(base))
    network = options["network_g"]
    if variant in VARIANTS:
        if not _is_of_the_paper(base):
            raise UserError(f"network_g: {variant} is a variant of DLGSANet with buildblock_type: sparseedge")
        network.pop("topk_ratio", None)
        network |= {"idynamic": True, "activation": "relu"} | VARIANTS[variant][1]
        if variant in ONE_KIND:
            network["blocks"] = 2 * network.get("blocks", 3)
    elif variant != BASE:
        for change in re.split(r",(?=[\w:]+=)", variant):
            change_option(network, change)
    _scale_schedule(options["train"], iterations)
    options["train"]["total_iter"] = iterations
    options["logger"]["save_checkpoint_freq"] = min(iterations, options["logger"]["save_checkpoint_freq"])
    options.setdefault("val", {})["val_freq"] = iterations
    # The iterations are in the name: a run of other length has had other rates, and is no start for this one.
    of_folder = re.sub(r"[/\\]", "_", variant)
    return options | {"name": f"{options['name']}_{of_folder}_{iterations}_seed{seed}", "manual_seed": seed}


def _title(variant: str) -> str:
    return VARIANTS[variant][0] if variant in VARIANTS else variant


def _scale_schedule(train: dict[str, Any], iterations: int) -> None:
    """Scale all that a `train` section says about the learning rate to a run of another length."""
    share, scheduler = iterations / train["total_iter"], train["scheduler"]

    def scaled(iteration: int) -> int:
        return max(1, round(iteration * share)) if iteration > 0 else iteration

    if "warmup_iter" in train:
        train["warmup_iter"] = scaled(train["warmup_iter"])
    if scheduler.get("epochs") and not scheduler.get("total_steps"):
        scheduler["total_steps"] = scheduler.pop("epochs") * scheduler.pop("steps_per_epoch")
    for key in ITERATIONS:
        if scheduler.get(key):
            scheduler[key] = scaled(scheduler[key])
    if scheduler["type"] in ("ExponentialLR", "CyclicLR") and "gamma" in scheduler:  # of each iteration
        scheduler["gamma"] **= 1 / share
    if "restarts" in scheduler:
        scheduler["restarts"] = [scaled(at) for at in scheduler["restarts"]]
    if "milestones" in scheduler:  # of a short run several may be one
        scheduler["milestones"] = sorted({scaled(at) for at in scheduler["milestones"]})
    if "periods" in scheduler:
        ends = [0, *(round(end * share) for end in accumulate(scheduler["periods"]))]
        scheduler["periods"] = [max(1, end - start) for start, end in pairwise(ends)]


def _is_of_the_paper(base: Mapping[str, Any]) -> bool:
    network = base["network_g"]
    return network["type"] == "DLGSANet" and network.get("buildblock_type") == "sparseedge"


def ablate(
    file: str,
    variants: Sequence[str],
    seeds: Sequence[int],
    iterations: int,
    data_root: str | None,
    folder: Path,
    imports: Sequence[str],
    signals: StopSignals,
) -> int:
    """Train every variant with every seed, one after the other, and score each on the file's validation sets.

    Interrupted runs continue where they stopped, unless the file or the images have changed. Option files,
    `ablation.csv` (every image) and `ablation.md` are written to `folder`; the table is printed.

    Args:
        variants: see `variant_options`; none: the paper's.
        imports: files and modules that register networks, next to those of the file's `import`.
        signals: that may stop the work.

    Returns:
        0, or the exit code of a run that a signal has stopped (`dlgsanet.signals`).

    Raises:
        UserError: the base file cannot be trained, or a run failed.
    """
    base = load_yaml(file)
    near = Path(file).parent
    given = import_all(imports, near)
    if names := given + import_all(names_in(base.get("import")), near, f"{file}: import"):
        base["import"] = names
    check_options(base, True, file)
    if not variants and not _is_of_the_paper(base):
        raise ArgumentError("variants", f"give some: {BASE}, or changes of network_g, KEY=VALUE[,KEY=VALUE]")
    if base["path"].get("resume_state"):
        raise UserError(f"{file}: path.resume_state: variants begin anew; remove it")
    variants = variants or list(VARIANTS)
    if wrong := [name for name in variants if "=" not in name and name not in (*VARIANTS, BASE)]:
        choices = unknown("variant", wrong[0], (BASE, *VARIANTS))
        raise ArgumentError("variants", f"{choices}, or give changes of network_g: KEY=VALUE[,KEY=VALUE]")
    made = {}
    for variant in variants:
        for seed in seeds:
            with within(file):
                options = variant_options(base, variant, seed, iterations)
            path = folder / "options" / f"{options['name']}.yml"
            write_whole(path, yaml.safe_dump(options, sort_keys=False).encode())
            made[variant, seed] = path
    for path in made.values():
        options = _options(path, data_root)  # every file is checked before the first is trained
    with within(file):  # the data sets are the same in all
        if not _validation_sets(options):
            raise UserError("datasets: has no data set val, on which the variants are scored")
        sets_to_test(_validation_sets(options), standard_metrics(options["scale"]), options["scale"])
    favoured = _favoured(base)
    if favoured:
        print(favoured, flush=True)
    rows: list[Row] = []
    for number, ((variant, seed), path) in enumerate(made.items(), 1):
        print(f"[{number}/{len(made)}] {_title(variant)}, seed {seed}", flush=True)
        code = _train(path, data_root, signals)
        if not code:
            for of_image in _score(_options(path, data_root), variant, seed, with_bicubic=not rows):
                if signals.received:
                    break
                rows += of_image
        if code := exit_code(signals.received) if signals.received else code:
            by = f" by {signal_name(signals.received)}" if signals.received else ""
            print(f"Stopped{by}; the same command goes on from here (exit code {code})", flush=True)
            return code
    print(_report(base, rows, variants, seeds, iterations, folder))
    return 0


def _favoured(base: Mapping[str, Any]) -> str | None:
    """A note if all variants start from weights: these favour the variant that they were trained as."""
    weights = (base.get("path") or {}).get("pretrain_network_g")
    if not weights:
        return None
    suited = []
    if _is_of_the_paper(base):
        options = network_options(read_checkpoint(weights, base["path"].get("param_key_g")))
        for name in VARIANTS:
            network = variant_options(base, name, 0, 1)["network_g"]
            if all(options.get(key, value) == value for key, value in network.items() if key != "type"):
                suited.append(name)
    trained_as = f"was trained as {' or '.join(suited)} and favours it" if suited else "favours the variants like it"
    return f"All variants start from {weights}, which {trained_as}."


def _options(path: Path, data_root: str | None) -> dict[str, Any]:
    return read_options(path, is_train=True, data_root=data_root)


def _validation_sets(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [opt for opt in options["datasets"].values() if opt["phase"] == "val"]


def _train(path: Path, data_root: str | None, signals: StopSignals) -> int:
    """Train in a process of its own; the exit code if it was stopped, else 0."""
    argv = ["train", "-opt", str(path), "--auto-resume", "--same-options"]
    argv += ["--data-root", data_root] if data_root else []
    code = run_in_process(run_command, (argv,), signals)
    if code and not signals.received and code not in (REQUEUE, INTERRUPTED):
        then = "" if code == FAULT else "; the same command goes on from here"
        raise UserError(f"{path}: training ended with code {code}, see above{then}")
    return code


def _score(options: dict[str, Any], variant: str, seed: int, with_bicubic: bool) -> Iterator[list[Row]]:
    """The rows of each image."""
    scale = options["scale"]
    weights = Path(options["path"]["models"], "net_g_latest.pth")
    if not weights.is_file():
        raise UserError(f"{weights}: the run left no weights")
    tested = options | {"is_train": False, "path": options["path"] | {"pretrain_network_g": str(weights)}}
    tested["path"]["param_key_g"] = "params_ema" if options["train"].get("ema_decay") else "params"
    network, device = network_of(tested)
    metrics = standard_metrics(scale)
    for dataset in _validation_sets(options):
        color = dataset.get("color")
        for picture in super_resolve(network, pairs_to_test(dataset), scale, device, color=color):
            name = f"{variant} {seed}"
            outputs = {name: picture.output} | ({BICUBIC: bicubic(picture.lr, scale)} if with_bicubic else {})
            yield [
                Row(dataset["name"], picture.pair.name, method, score(picture, image, metrics))
                for method, image in outputs.items()
            ]


def _report(
    base: Mapping[str, Any],
    rows: Sequence[Row],
    variants: Sequence[str],
    seeds: Sequence[int],
    iterations: int,
    folder: Path,
) -> str:
    mean_of = {(row.dataset, row.method): row.scores for row in means(rows)}
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = [[BICUBIC, "-", "-", *(_cell([mean_of[name, BICUBIC]]) for name in datasets)]]
    for variant in variants:
        network = variant_options(base, variant, seeds[0], iterations)["network_g"]
        cells = [_cell([mean_of[name, f"{variant} {seed}"] for seed in seeds]) for name in datasets]
        lines.append([_title(variant), *_costs(network, base["scale"]), *cells])
    table = Table(["variant", "params [K]", "GMACs", *datasets], lines)
    training = base["datasets"]["train"]
    note = (
        f"PSNR/SSIM on Y, {base['scale']} pixels cropped. {iterations} iterations of "
        f"{training.get('batch_size_per_gpu')} patches each, seeds {', '.join(map(str, seeds))}"
        + ("; ± is the standard deviation over the seeds." if len(seeds) > 1 else ".")
    )
    note += f" {favoured}" if (favoured := _favoured(base)) else ""
    images = Table(
        ["data set", "image", "run", "psnr", "ssim"],
        [[r.dataset, r.image, r.method, f"{r.scores['psnr']:.6f}", f"{r.scores['ssim']:.6f}"] for r in rows],
    )
    write_whole(folder / "ablation.csv", images.csv().encode())
    write_whole(folder / "ablation.md", f"# {base['name']}\n\n{table.markdown()}\n{note}\n".encode())
    return f"{table.text(terminal_width())}\n\n{note}"


def _cell(of_seeds: Sequence[Mapping[str, float]]) -> str:
    psnrs = [scores["psnr"] for scores in of_seeds]
    spread = f"±{statistics.stdev(psnrs):.2f}" if len(psnrs) > 1 else ""
    ssim = statistics.fmean(scores["ssim"] for scores in of_seeds)
    return f"{figure('psnr', statistics.fmean(psnrs))}{spread}/{figure('ssim', ssim)}"


def _costs(options: Mapping[str, Any], scale: int) -> tuple[str, str]:
    network = registered_network(options)
    try:
        size = computed_size(options, *input_size(scale))
        macs = f"{multiply_accumulates(network, *size, input_channels(options)) / 1e9:.1f}"
    except UserError as error:  # after all the training, the table counts more than this figure
        print(f"GMACs: {error}", file=sys.stderr)
        macs = "-"
    return f"{parameters(network) / 1e3:.1f}", macs
