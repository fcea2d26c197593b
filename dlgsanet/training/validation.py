"""Validation, its images shared out to the ranks; the figures are those of a single process to the last digit."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import imwrite, tensor2img
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from dlgsanet.data.pairs import Pair
from dlgsanet.distributed import gather
from dlgsanet.errors import UserError
from dlgsanet.training.samples import read_sample


class StoppedError(Exception):
    """A signal came while validation ran: nothing of it counts."""


class ValidationSet:
    """One data set to validate on.

    Args:
        dataset: gives `lq`, `lq_path` and, for metrics, `gt`.
        name: what tables call it.
        rank, world_size: this rank takes every `world_size`-th image.
    """

    def __init__(self, dataset: Any, name: str, rank: int, world_size: int):
        self.dataset, self.name = dataset, name
        self.indices = range(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return len(self.dataset)

    def run(
        self, model: BaseModel, metrics: dict[str, Any], save_to: Path | None, stopped: Callable[[], bool]
    ) -> tuple[dict[str, float], np.ndarray | None]:
        """Upscale and score every image. All ranks call this.

        Args:
            model: scores its averaged weights where it has them.
            metrics: the `val.metrics` section.
            save_to: prefix of the pictures' paths, or None.
            stopped: asked between images.

        Returns:
            The mean of every metric; and the first image, uint8 [H, W, 3] in BGR or [H, W, 1], on its rank.

        Raises:
            StoppedError: on every rank, when `stopped` was true on any.
        """
        scores: dict[int, dict[str, float]] = {}
        first = None
        with _each_rank_for_itself(model):
            for index in self.indices:
                data = default_collate([read_sample(self.dataset, index)])
                if stopped():
                    break
                image, scores[index] = _upscale_and_score(model, data, metrics)
                first = np.atleast_3d(image) if index == 0 else first
                if save_to:
                    imwrite(image, str(save_to / f"{Path(data['lq_path'][0]).stem}.png"))
        everyones = gather(scores)
        if sum(map(len, everyones)) < len(self.dataset):
            raise StoppedError
        by_index = sorted((index, score) for part in everyones for index, score in part.items())
        means = {name: sum(score[name] for _, score in by_index) / len(by_index) for name in metrics}
        return means, first


def check_metrics(metrics: dict[str, Any], smallest: Pair, scale: int) -> None:
    """Try the metrics of `val.metrics` on the smallest pair of a data set, before work begins.

    Raises:
        UserError: a metric needs larger images.
    """
    gt = smallest.read(scale)[1][..., ::-1]
    for name, options in metrics.items():
        options = {key: value for key, value in options.items() if key != "better"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = float(calculate_metric({"img": gt, "img2": gt}, options))
        except Exception as error:  # whatever a metric does with an image that is too small for it
            value, reason = math.nan, f" ({' '.join(str(error).split())[:100] or type(error).__name__})"
        else:
            reason = ""
        if math.isnan(value):
            size = f"{gt.shape[1]}x{gt.shape[0]}"
            raise UserError(
                f"{smallest.gt.name}: val.metrics.{name} cannot be computed on its {size} pixels{reason}; "
                "remove the metric or the small images"
            )


@contextmanager
def _each_rank_for_itself(model: BaseModel) -> Iterator[None]:
    """Take the wrapping off: it broadcasts buffers in every pass, and not all ranks make as many passes."""
    wrapped = {name: net for name, net in vars(model).items() if isinstance(net, DistributedDataParallel)}
    vars(model).update({name: net.module for name, net in wrapped.items()})
    try:
        yield
    finally:
        vars(model).update(wrapped)


def _upscale_and_score(
    model: BaseModel, data: dict[str, Any], metrics: dict[str, Any]
) -> tuple[np.ndarray, dict[str, float]]:
    model.feed_data(data)
    model.test()
    visuals = model.get_current_visuals()
    image = tensor2img([visuals["result"]])
    scores = {}
    for name, options in metrics.items():
        options = {key: value for key, value in options.items() if key != "better"}
        scores[name] = float(calculate_metric({"img": image, "img2": tensor2img([visuals["gt"]])}, options))
    return image, scores
