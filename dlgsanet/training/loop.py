"""The training loop: iterate, log, save, validate, until the end or a signal."""

import logging
import math
import resource
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel

from dlgsanet.distributed import from_first, largest, raised_on_all
from dlgsanet.errors import UserError, counted
from dlgsanet.models.dlgsanet_model import DivergedError
from dlgsanet.options.check import BELOW_BICUBIC
from dlgsanet.signals import StopSignals, exit_code, signal_name
from dlgsanet.training.board import Board
from dlgsanet.training.checkpoints import Checkpoints
from dlgsanet.training.messages import Pace, ProgressLine, duration, progress_text
from dlgsanet.training.resume import Position, state_of, weights_of
from dlgsanet.training.validation import StoppedError, ValidationSet

logger = logging.getLogger("dlgsanet")

ESTIMATED_AFTER = 5  # iterations; the first are slower


@dataclass
class Loop:
    """A run from `position` on.

    Args:
        options: of the run.
        model: trained in place.
        batches: this rank's, endless.
        batch_size: samples of an iteration, of all ranks.
        epoch_length: samples of an epoch.
        validation_sets: scored every `val.val_freq` iterations.
        position: where the run is.
        conditions: what its exactness depends on, of `dlgsanet.training.conditions`.
    """

    options: dict[str, Any]
    model: BaseModel
    batches: Generator[dict[str, Any], None, None]
    batch_size: int
    epoch_length: int
    validation_sets: list[ValidationSet]
    checkpoints: Checkpoints
    board: Board
    line: ProgressLine
    position: Position
    conditions: dict[str, Any]

    def __post_init__(self) -> None:
        self.total = int(self.options["train"]["total_iter"])
        self.val = self.options.get("val") or {}
        self.pace = Pace(self.total)
        self.scores: dict[str, float] = {}
        # A process that waits for a GPU or for other ranks needs no CPU time either.
        several = torch.get_num_threads() > 1
        self.may_have_too_many_threads = several and not self.options["num_gpu"] and not self.options["dist"]
        self.saved_at, self.saved = time.monotonic(), self.position.iteration

    def run(self, signals: StopSignals) -> int:
        """Train to the end or until a signal; the exit code."""
        signals.patient = True
        try:
            while True:
                stop, save = largest(signals.received, self._save_is_due())
                if stop:
                    return self._stop(stop)
                if save:
                    self._save()
                if self._validation_is_due():  # also at the start, when it was stopped in the middle
                    self._validate(signals)
                if self.position.iteration >= self.total:
                    break
                self._iterate()
            self._check_steps()
            if self.validation_sets and self.position.validated < self.total:
                self._validate(signals)
            if self.saved != self.position.iteration:
                self._save()
            self._save_weights("latest")
            self.board.flush()
            logger.info("End of training after %s", duration(self.position.seconds))
            return 0
        except StoppedError:
            return self._stop(*largest(signals.received))
        except DivergedError as error:
            # The weights before the first bad step gave no finite loss either: a checkpoint of them is not good.
            if self.options["rank"] == 0:
                self.checkpoints.set_aside(after=self.position.iteration - self._bad_steps_in_row() - 1)
            raise UserError(from_first(f"{error}; {self.checkpoints.last_good()}")) from None
        finally:
            self.batches.close()  # and with it its workers
            self.line.clear()
            self.board.close()

    def _check_steps(self) -> None:
        """Check, at the end of a run that is too short for `max_bad_steps`, that steps were taken."""
        if not (bad := self._bad_steps_in_row()):
            return
        what = "the loss or its gradient was not finite"
        if bad >= self.position.iteration:
            raise UserError(
                f"no step was taken in {counted(bad, 'iteration')}: {what}; set a lower train.optim_g.lr, "
                "train.grad_clip or train.precision: fp32, and check the images and path.pretrain_network_g"
            )
        logger.warning("%-11s%s at the end: %s", "Skipped", counted(bad, "step"), what)

    def _iterate(self) -> None:
        start = time.monotonic()
        batch = next(self.batches)
        waited, computed = time.monotonic() - start, time.process_time()
        self.position.iteration += 1
        self.position.samples += self.batch_size
        iteration = self.position.iteration
        self.model.update_learning_rate(iteration, self.options["train"]["warmup_iter"])
        self.model.feed_data(batch)
        self.model.optimize_parameters(iteration)
        seconds = time.monotonic() - start
        self.position.seconds += seconds
        self.pace.add(seconds, waited, time.process_time() - computed)
        self._report()

    def _report(self) -> None:
        iteration, log = self.position.iteration, self.model.get_current_log()
        if not hasattr(self.model, "scaler") and not all(map(math.isfinite, log.values())):
            raise UserError(
                f"iteration {iteration}: the loss is not finite and {type(self.model).__name__} has taken the step; "
                f"{self.checkpoints.last_good()}"
            )
        if self._bad_steps_in_row():
            skipped = f"step skipped, {self.model.bad_steps:,} so far"
            logger.info("%s: the loss or its gradient is not finite; %s", f"{iteration:,}", skipped)
        if self.pace.counted == ESTIMATED_AFTER:
            logger.info("%-11s%s for the rest", "Estimated", self.pace.left(iteration))
        if self.may_have_too_many_threads and self.pace.threads_wait:
            self.may_have_too_many_threads = False  # one hint is enough
            logger.warning(
                "%-11sa step takes %.3g s and only %.3g s of CPU time: %d threads wait for cores that other programs "
                "use; a smaller OMP_NUM_THREADS (1, for example) may be faster",
                "Threads",
                self.pace.seconds_per_iteration - self.pace.waiting,
                self.pace.computing,
                torch.get_num_threads(),
            )
        rate = self.model.get_current_learning_rate()[0]
        text = progress_text(iteration, self.pace, log, rate, self.scores)
        self.line.show(text)
        if iteration % self.options["logger"]["print_freq"] == 0:
            logger.info(text)
            losses = {f"losses/{name}" if name.startswith("l_") else name: value for name, value in log.items()}
            speed = self.batch_size / self.pace.seconds_per_iteration
            more = {"learning_rate": rate, "images_per_second": speed, "memory_gb": peak_memory()}
            self.board.scalars(losses | more, iteration)

    def _save_is_due(self) -> bool:
        """Every so many iterations, and after so many minutes without; rank 0's clock counts.

        Not while steps are skipped: if that does not end, only earlier checkpoints are good.
        """
        every = self.options["logger"]["save_checkpoint_freq"]
        minutes = self.options["logger"]["save_checkpoint_minutes"]
        late = self.options["rank"] == 0 and time.monotonic() - self.saved_at > 60 * minutes
        due = self.position.iteration // every > self.saved // every or late
        return due and not self._bad_steps_in_row() and self.position.iteration > self.saved

    def _bad_steps_in_row(self) -> int:
        return getattr(self.model, "bad_steps_in_row", 0)

    def _save(self) -> None:
        epoch = self.position.samples // self.epoch_length
        state = state_of(self.model, self.position, epoch, self.conditions)
        self.board.flush()  # TensorBoard's files must never be behind a checkpoint
        with raised_on_all():
            if self.options["rank"] == 0:
                self.checkpoints.save(self.position.iteration, weights_of(self.model), state)
        self.saved_at, self.saved = time.monotonic(), self.position.iteration

    def _save_weights(self, name: str) -> None:
        with raised_on_all():  # no rank continues before they are on disk
            if self.options["rank"] == 0:
                self.checkpoints.save_weights(weights_of(self.model), name, self.position.iteration)

    def _stop(self, signal_number: int) -> int:
        if self.saved != self.position.iteration and not self._bad_steps_in_row():
            self._save()
        code = exit_code(signal_number)
        what = signal_name(signal_number)
        logger.info("Stopped by %s; %s (exit code %d)", what, self.checkpoints.last_good(), code)
        return code

    def _validation_is_due(self) -> bool:
        iteration = self.position.iteration
        due = iteration > self.position.validated and iteration % self.val.get("val_freq", math.inf) == 0
        return bool(self.validation_sets) and due

    def _validate(self, signals: StopSignals) -> None:
        iteration, root = self.position.iteration, Path(self.options["path"]["visualization"])
        self.line.clear()
        scores: dict[str, dict[str, float]] = {}
        for data in self.validation_sets:
            save_to = root / data.name / str(iteration) if self.val.get("save_img") else None
            metrics = self.val.get("metrics") or {}
            scores[data.name], first = data.run(
                self.model, metrics, self._best_metric(), save_to, lambda: bool(signals.received)
            )
            text = "  ".join(f"{name} {value:.4f}" for name, value in scores[data.name].items() if name in metrics)
            if BELOW_BICUBIC in scores[data.name]:
                text += f"  below bicubic {scores[data.name][BELOW_BICUBIC]} of {len(data)}"
            logger.info("Validation at %s on %s: %s", f"{iteration:,}", data.name, text)
            self.board.scalars({f"metrics/{data.name}/{k}": v for k, v in scores[data.name].items()}, iteration)
            if first is not None:
                self.board.picture(f"pictures/{data.name}", first, iteration)
        self._keep_if_best(scores)
        self.position.validated = iteration

    def _best_metric(self) -> str | None:
        """Name of the metric that chooses the best weights, if there is one."""
        return (self.val.get("best") or {}).get("metric") or next(iter(self.val.get("metrics") or {}), None)

    def _keep_if_best(self, scores: dict[str, dict[str, float]]) -> None:
        metric = self._best_metric()
        if metric is None:
            return
        name = (self.val.get("best") or {}).get("dataset", self.validation_sets[0].name)
        value, entry = scores[name][metric], self.val["metrics"][metric]
        # What was best by another metric or on other images, before this start, is no measure now.
        best, by = self.position.best, f"{metric} on {name}, {sorted(entry.items())}"
        former = best.get("value") if best.get("by", by) == by else None
        self.scores = scores[name]
        lower = entry.get("better") == "lower"
        worse = former is not None and (value >= former if lower else value <= former)  # none is worse than NaN
        if not worse and not math.isnan(value):
            self.position.best = {"value": value, "iteration": self.position.iteration, "by": by}
            self._save_weights("best")
        if self.position.best:
            logger.info("Best %s on %s: %.4f at %s", metric, name, *_best(self.position))


def _best(position: Position) -> tuple[float, str]:
    return position.best["value"], f"{position.best['iteration']:,}"


def peak_memory() -> float:
    """Peak memory in GB: of the GPU, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
