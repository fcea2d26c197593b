"""`dlgsanet benchmark`: scores, costs and pictures of networks on test sets.

The work is divided into batches of a few pictures of equal size. They depend on the test sets alone: they are the same
however the work is shared and wherever it was interrupted, and so are the results. The result of a batch is written to
a journal immediately, with a digest of everything that it depends on. After an interruption, or with more networks, a
run computes only what is missing. Parts that fail are reported at the end, and everything else is computed.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from dlgsanet.data.images import png_bytes
from dlgsanet.data.pairs import Pair, find_pairs_in
from dlgsanet.data.parallel import for_each
from dlgsanet.device import describe
from dlgsanet.errors import ArgumentError, UserError
from dlgsanet.evaluation.complexity import computed_size, input_size, measure, multiply_accumulates, parameters
from dlgsanet.evaluation.entries import Entry, bicubic_entry, module_of, network_for
from dlgsanet.evaluation.journal import Journal, digest
from dlgsanet.evaluation.perceptual import PERCEPTUAL, perceptual_metric
from dlgsanet.evaluation.rows import Row
from dlgsanet.evaluation.scoring import (
    Metric,
    Network,
    Picture,
    batches,
    bicubic,
    score,
    standard_metrics,
    super_resolve,
)
from dlgsanet.extensions import import_all
from dlgsanet.files import check_can_write, printable, write_whole
from dlgsanet.metrics import psnr, ssim
from dlgsanet.pictures.shares import Shard, done_on_devices
from dlgsanet.progress import Counter

METRICS = ("psnr", "ssim", "psnr_rgb", "ssim_rgb", *PERCEPTUAL)


@dataclass(frozen=True)
class Job:
    """A batch: pictures of one size, for one method, that go through a network together."""

    entry: Entry
    dataset: str
    pairs: tuple[Pair, ...]

    def picture(self, pair: Pair) -> Path:
        """The file of a picture, below the folder for the results."""
        return picture_path(Path(), self.entry.scale, self.entry.name, self.dataset, pair.name)


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        output: folder for the results.
        metrics: those of `METRICS` that are computed.
        batch: pictures of equal size that go through a network at once.
        devices: names of the devices; they share the work.
        runs: timed runs of each network for its latency; 0 for none.
        imports: files and modules that register networks (`dlgsanet.extensions`).
        shard: the part of the work that is done here, of several jobs with the same output folder; None: all of it.
    """

    output: Path
    metrics: tuple[str, ...] = ("psnr", "ssim")
    batch: int = 1
    devices: tuple[str, ...] = ("cpu",)
    runs: int = 3
    imports: tuple[str, ...] = ()
    shard: Shard | None = None


@dataclass
class Outcome:
    """The results of one scale.

    Attributes:
        rows: the scores of every picture.
        folders, pairs, sizes: for each test set, its folder, its usable pairs, and its number of pairs.
        missing: pictures that have no scores yet: they failed here, or are part of another job's work.
        costs: each network's `parameters`, `macs`, `seconds`, `peak_bytes` and `device`.
        failures: one line for each part that failed.
    """

    scale: int
    entries: list[Entry]
    rows: list[Row] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def available(metrics: Sequence[str], device: str, failures: list[str]) -> tuple[str, ...]:
    """The `metrics` that can be computed, in the order of `METRICS`. The others are reported in `failures`."""
    found = []
    for name in METRICS:
        if name in metrics:
            try:
                if name in PERCEPTUAL:
                    perceptual_metric(name, device)
                found.append(name)
            except UserError as error:
                failures.append(str(error))
    return tuple(found)


def picture_path(output: Path, scale: int, method: str, dataset: str, name: str) -> Path:
    return output / "pictures" / f"x{scale}" / method / dataset / f"{name}.png"


def run_scale(scale: int, networks: Sequence[Entry], folders: Sequence[Path], settings: Settings) -> Outcome:
    """Score every network (of this scale), and bicubic, on the test sets in `folders` (HR and LR_bicubic/X2...).

    With `settings.shard`, only that part of what is missing is computed. The rows are of all pictures that this job
    and the others have scored.

    Raises:
        UserError: the output cannot be written. All other errors are in the `failures` of the outcome.
    """
    outcome = Outcome(scale, [bicubic_entry(scale), *networks])
    names = [printable(Path(os.path.abspath(folder)).name) for folder in folders]  # that of `.` is empty
    if len(set(names)) < len(folders):
        raise ArgumentError("data", "two test sets have the same name; their pictures go to a folder of that name")
    for name, folder in zip(names, folders, strict=True):
        try:
            pairs = find_pairs_in(folder, scale)
        except UserError as error:
            outcome.failures.append(str(error))
            continue
        outcome.sizes[name] = len(pairs)
        outcome.folders[name] = folder.resolve()
        outcome.pairs[name] = _usable(pairs, scale, outcome.failures)
    for entry in outcome.entries:
        for dataset in outcome.pairs:
            check_can_write(picture_path(settings.output, scale, entry.name, dataset, "image"))
    contents = {pair: digest(pair.lq.read(), pair.gt.read()) for pairs in outcome.pairs.values() for pair in pairs}
    jobs = list(_jobs(outcome, settings.batch))
    with closing(Journal(settings.output, settings.shard)) as journal:
        _score(outcome, _Scores(journal, settings, contents), jobs)
    # Opened again, for what other jobs have done meanwhile. The job that ends last finds everything.
    with closing(Journal(settings.output, settings.shard)) as journal:
        _add_rows(outcome, _Scores(journal, settings, contents), jobs)
    return outcome


def _usable(pairs: list[Pair], scale: int, failures: list[str]) -> list[Pair]:
    """The pairs that can be read, sorted by size so that equal ones can go together."""

    def with_size(pair: Pair) -> tuple[tuple[int, int], Pair]:
        pair.read(scale)
        return pair.sizes(scale)[1], pair

    found, faults = for_each(with_size, pairs, "reading")
    failures += faults
    return [pair for _, pair in sorted(found, key=lambda sized: sized[0])]


@dataclass(frozen=True)
class _Scores:
    """The scores of pictures in a journal. `contents` has a digest of each pair."""

    journal: Journal
    settings: Settings
    contents: dict[Pair, str]

    def key(self, job: Job, pair: Pair) -> str | None:
        """Names the picture and everything that its scores depend on; None: there is no picture."""
        path = job.picture(pair)
        try:
            picture = (self.settings.output / path).read_bytes()
        except OSError:
            return None
        return f"{path} {digest(job.entry.digest, self.settings.metrics, self.contents[pair], picture)}"

    def get(self, job: Job, pair: Pair) -> dict[str, float] | None:
        key = self.key(job, pair)
        return self.journal.get(key) if key else None

    def add(self, job: Job, pair: Pair, scores: dict[str, float]) -> None:
        if key := self.key(job, pair):
            self.journal.add(key, scores)


def _jobs(outcome: Outcome, batch: int) -> Iterator[Job]:
    for entry in outcome.entries:
        for dataset, pairs in outcome.pairs.items():
            for some in batches(pairs, outcome.scale, batch):
                yield Job(entry, dataset, tuple(some))


def _score(outcome: Outcome, scores: _Scores, jobs: Sequence[Job]) -> None:
    """Compute what is missing of the jobs of this shard."""
    shard = scores.settings.shard
    ours = [job for job in jobs if shard is None or shard.has(job.picture(job.pairs[0]))]
    missing = [job for job in ours if any(scores.get(job, pair) is None for pair in job.pairs)]
    total = sum(len(job.pairs) for job in missing)
    with Counter(f"x{outcome.scale}", total, "pictures") as counter:
        for job, result in _results(missing, scores.settings):
            counter.done(len(job.pairs))
            if isinstance(result, str):
                if result not in outcome.failures:
                    outcome.failures.append(result)
                continue
            for pair, found in zip(job.pairs, result, strict=True):
                scores.add(job, pair, found)


def _add_rows(outcome: Outcome, scores: _Scores, jobs: Sequence[Job]) -> None:
    """Add the rows of all jobs, by method, test set and picture."""
    for (entry, dataset), group in groupby(jobs, key=lambda job: (job.entry, job.dataset)):
        pictures = sorted(((job, pair) for job in group for pair in job.pairs), key=lambda picture: picture[1].name)
        for job, pair in pictures:
            if found := scores.get(job, pair):
                outcome.rows.append(Row(dataset, pair.name, entry.name, found))
            else:
                outcome.missing += 1


def _results(jobs: Sequence[Job], settings: Settings) -> Iterator[tuple[Job, list[dict[str, float]] | str]]:
    """Each job with its scores or its error, on all devices at once, in the order in which jobs finish."""
    work = partial(_attempt, settings=settings)
    if len(settings.devices) == 1:
        _use_device(settings.devices[0])
        return ((job, work(job)) for job in jobs)
    return done_on_devices(settings.devices, partial(_use_device, imports=settings.imports), work, jobs)


_device = "cpu"  # of this process


def _use_device(name: str, imports: Sequence[str] = ()) -> None:
    global _device
    import_all(imports)
    _device = name


def _attempt(job: Job, settings: Settings) -> list[dict[str, float]] | str:
    try:
        metrics = {name: _metric(name, job.entry.scale) for name in settings.metrics}
        scores = []
        for picture in _pictures(job, settings.batch):
            write_whole(settings.output / job.picture(picture.pair), png_bytes(picture.output))
            scores.append(score(picture, picture.output, metrics))
        return scores
    except UserError as error:
        return f"{job.entry.name} x{job.entry.scale}: {error}"
    # Networks of other projects may raise any exception for sizes that they do not support.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        return f"{job.entry.name} x{job.entry.scale}: {reason}"


def _metric(name: str, scale: int) -> Metric:
    if name in PERCEPTUAL:
        return perceptual_metric(name, _device)
    rgb = {"psnr_rgb": psnr, "ssim_rgb": ssim}
    return partial(rgb[name], crop_border=scale, y_channel=False) if name in rgb else standard_metrics(scale)[name]


def _pictures(job: Job, batch: int) -> Iterator[Picture]:
    if job.entry.source is not None:
        yield from super_resolve(_network(job.entry, _device), job.pairs, job.entry.scale, _device, batch)
        return
    for pair in job.pairs:
        lr, hr = pair.read(job.entry.scale)
        yield Picture(pair, lr, hr, bicubic(lr, job.entry.scale))


@functools.lru_cache(maxsize=1)  # jobs come sorted by network
def _network(entry: Entry, device: str) -> Network:
    return network_for(entry, torch.device(device))


def add_costs(outcome: Outcome, settings: Settings) -> None:
    """Add every network's cost at a 1280x720 output; a self-ensemble's is eight times its network's."""
    device, networks = torch.device(settings.devices[0]), outcome.entries[1:]
    with (
        Counter(f"x{outcome.scale}, costs", len(networks), "networks") as counter,
        closing(Journal(settings.output, settings.shard)) as journal,
    ):
        for entry in counter.each(networks):
            key = digest("cost", entry.digest, describe(device), os.environ.get("DLGSANET_BACKEND"), settings.runs)
            if not (cost := journal.get(key)):
                try:
                    cost = _cost_of(entry, device, settings.runs)
                except UserError as error:
                    outcome.failures.append(f"{entry.name} x{entry.scale}: {error}")
                    continue
                journal.add(key, cost)
            outcome.costs[entry.name] = cost


def _cost_of(entry: Entry, device: torch.device, runs: int) -> dict[str, Any]:
    network = module_of(entry)
    times = 8 if entry.ensemble else 1
    height, width = computed_size(entry.options["network_g"], *input_size(entry.scale))
    cost: dict[str, Any] = {"parameters": parameters(network)}
    cost["macs"] = times * multiply_accumulates(network, height, width)
    if runs:
        measured = measure(network.to(device), height, width, device, runs)
        cost |= {"seconds": times * measured.seconds, "peak_bytes": measured.peak_bytes, "device": describe(device)}
    return cost
