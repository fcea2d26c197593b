"""Validation. Each rank takes a share of the images; the scores are those of a single process to the last digit."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import tensor2img
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from dlgsanet.data.images import png_bytes
from dlgsanet.data.pairs import Pair
from dlgsanet.data.resize import imresize
from dlgsanet.distributed import gather
from dlgsanet.errors import UserError
from dlgsanet.files import write_whole
from dlgsanet.training.samples import read_sample

BELOW_BICUBIC = "below_bicubic"


class StoppedError(Exception):
    """A signal came during validation. Its results are discarded."""


class ValidationSet:
    """One data set to validate on.

    Args:
        dataset: gives `lq`, `lq_path` and, for metrics, `gt`.
        name: its name in the log.
        rank, world_size: this rank takes every `world_size`-th image.
    """

    def __init__(self, dataset: Any, name: str, rank: int, world_size: int):
        self.dataset, self.name = dataset, name
        self.indices = range(rank, len(dataset), world_size)
        self._bicubic: dict[int, float] = {}  # scores of bicubic interpolation by index, computed once

    def __len__(self) -> int:
        return len(self.dataset)

    def run(
        self,
        model: BaseModel,
        metrics: dict[str, Any],
        compared: str | None,
        save_to: Path | None,
        stopped: Callable[[], bool],
    ) -> tuple[dict[str, float], np.ndarray | None]:
        """Upscale and score every image, and count those that bicubic interpolation enlarges better.

        All ranks call this.

        Args:
            model: scores its averaged weights where it has them.
            metrics: the `val.metrics` section.
            compared: name of the metric by which images are compared with bicubic interpolation. None: they are not.
            save_to: prefix of the pictures' paths, or None.
            stopped: called between images.

        Returns:
            The mean of every metric, and under `BELOW_BICUBIC` that count; and the first image, uint8 [H, W, 3] in
            BGR, on the rank that computed it.

        Raises:
            StoppedError: on every rank, when `stopped` was true on any.
        """
        scores: dict[int, dict[str, float]] = {}
        below: list[int] = []
        first = None
        with _each_rank_for_itself(model):
            for index in self.indices:
                data = default_collate([read_sample(self.dataset, index)])
                if stopped():
                    break
                image, scores[index] = _upscale_and_score(model, data, metrics)
                if compared and self._is_below_bicubic(index, data, metrics[compared], scores[index][compared]):
                    below.append(index)
                first = np.atleast_3d(image) if index == 0 else first
                if save_to:
                    write_whole(save_to / f"{Path(data['lq_path'][0]).stem}.png", _png(image))
        everyones = gather(scores)
        if sum(map(len, everyones)) < len(self.dataset):
            raise StoppedError
        by_index = sorted((index, score) for part in everyones for index, score in part.items())
        means = {name: sum(score[name] for _, score in by_index) / len(by_index) for name in metrics}
        return means | ({BELOW_BICUBIC: sum(map(len, gather(below)))} if compared else {}), first

    def _is_below_bicubic(self, index: int, data: dict[str, Any], metric: dict[str, Any], value: float) -> bool:
        if index not in self._bicubic:
            lq, gt = tensor2img([data["lq"]]), tensor2img([data["gt"]])
            self._bicubic[index] = _score(imresize(lq, len(gt) // len(lq)), gt, metric)
        bicubic = self._bicubic[index]
        return value > bicubic if metric.get("better") == "lower" else value < bicubic


def _png(image: np.ndarray) -> bytes:
    return png_bytes(image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1]))


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
        except Exception as error:  # metrics raise many kinds for images that are too small
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
    """Unwrap the networks: the wrapper broadcasts buffers in each pass, and ranks differ in their number of passes."""
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
    gt = tensor2img([visuals["gt"]]) if metrics else None
    return image, {name: _score(image, gt, options) for name, options in metrics.items()}


def _score(image: np.ndarray, gt: np.ndarray | None, metric: dict[str, Any]) -> float:
    options = {key: value for key, value in metric.items() if key != "better"}
    return float(calculate_metric({"img": image, "img2": gt}, options))
