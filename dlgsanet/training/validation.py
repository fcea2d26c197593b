"""Validation. Each rank takes a share of the images; the scores are those of a single process to the last digit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import tensor2img
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from dlgsanet.data.images import png_bytes
from dlgsanet.data.resize import imresize
from dlgsanet.distributed import copy_from_first, gather
from dlgsanet.errors import NOT_FINITE
from dlgsanet.files import write_whole
from dlgsanet.models.dlgsanet_model import DivergedError
from dlgsanet.options.check import BELOW_BICUBIC
from dlgsanet.training.samples import read_sample


class StoppedError(Exception):
    """A signal came during validation. Its results are discarded."""


class ValidationSet:
    """One data set to validate on.

    Args:
        dataset: gives `lq`, perhaps `lq_path` and, for metrics, `gt`.
        name: its name in the log.
        hardest: index of the image to try before work begins.
        rank, world_size: this rank takes every `world_size`-th image.
        mean, std: with which the data set normalises the channels of its samples, if it does.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        hardest: int,
        rank: int,
        world_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.dataset, self.name, self.hardest = dataset, name, hardest
        self.normalisation = mean, std
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
            DivergedError: on every rank, when the network's output for an image is not finite.
        """
        scores: dict[int, dict[str, float]] = {}
        below: list[int] = []
        first = diverged = None
        with _each_rank_for_itself(model):
            for index in self.indices:
                data = default_collate([read_sample(self.dataset, index)])
                data.setdefault("lq_path", [f"{self.name}_{index}"])  # a data set of the user's own may not name images
                if stopped():
                    break
                try:
                    image, scores[index] = _upscale_and_score(model, data, metrics, *self.normalisation)
                except DivergedError as error:
                    diverged = str(error)
                    break
                if compared and self._is_below_bicubic(index, data, metrics[compared], scores[index][compared]):
                    below.append(index)
                first = np.atleast_3d(image) if index == 0 else first
                if save_to:
                    write_whole(save_to / f"{Path(data['lq_path'][0]).stem}.png", _png(image))
        everyones = gather(scores)
        for found in filter(None, gather(diverged)):
            raise DivergedError(found)
        if sum(map(len, everyones)) < len(self.dataset):
            raise StoppedError
        by_index = sorted((index, score) for part in everyones for index, score in part.items())
        means = {name: sum(score[name] for _, score in by_index) / len(by_index) for name in metrics}
        return means | ({BELOW_BICUBIC: sum(map(len, gather(below)))} if compared else {}), first

    def _is_below_bicubic(self, index: int, data: dict[str, Any], metric: dict[str, Any], value: float) -> bool:
        if index not in self._bicubic:
            lq, gt = (_levels(data[key], *self.normalisation) for key in ("lq", "gt"))
            self._bicubic[index] = score(imresize(lq, len(gt) // len(lq)), gt, metric)
        bicubic = self._bicubic[index]
        return value > bicubic if metric.get("better") == "lower" else value < bicubic


def _levels(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> np.ndarray:
    """uint8 BGR [H, W, 3] (or gray [H, W]) of a sample or an output [1, C, H, W], which may be normalised."""
    if mean is not None and std is not None:
        image = image * image.new_tensor(std)[:, None, None] + image.new_tensor(mean)[:, None, None]
    return tensor2img([image])


def _png(image: np.ndarray) -> bytes:
    return png_bytes(image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1]))


@contextmanager
def _each_rank_for_itself(model: BaseModel) -> Iterator[None]:
    """Unwrap the networks: the wrapper broadcasts buffers in each pass, and ranks differ in their number of passes.

    All get those of the first rank, which are saved: each rank has other statistics of batch normalisation.
    """
    wrapped = {name: net for name, net in vars(model).items() if isinstance(net, DistributedDataParallel)}
    vars(model).update({name: net.module for name, net in wrapped.items()})
    for network in [net for name, net in vars(model).items() if name.startswith("net_")]:
        copy_from_first(network.buffers())
    try:
        yield
    finally:
        vars(model).update(wrapped)


def _upscale_and_score(
    model: BaseModel,
    data: dict[str, Any],
    metrics: dict[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    model.feed_data(data)
    model.test()
    visuals = model.get_current_visuals()
    if not visuals["result"].isfinite().all():
        raise DivergedError(f"{data['lq_path'][0]}: {NOT_FINITE}")
    image = _levels(visuals["result"], mean, std)
    gt = _levels(visuals["gt"], mean, std) if metrics else None
    return image, {name: score(image, gt, options) for name, options in metrics.items()}


def score(image: np.ndarray, gt: np.ndarray | None, metric: dict[str, Any]) -> float:
    """The value of an entry of `val.metrics` for an image and its original, uint8 [H, W, 3] in BGR."""
    options = {key: value for key, value in metric.items() if key != "better"}
    return float(calculate_metric({"img": image, "img2": gt}, options))
