"""A training data set for photographs as people have them: crops that are blurred, noisy and compressed at random."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.degradation import Degradation, degraded_crop, draw
from dlgsanet.errors import UserError
from dlgsanet.options.table import DEGRADED_TRAINING_SET

_OWN_NUMBERS = 1  # sets this stream of random numbers apart from that of crops and flips


class DegradedPairedImageDataset(CachedPairedImageDataset):
    """`CachedPairedImageDataset` whose LQ crops are made from the originals by random degradations, for training.

    The degradation of a sample depends on `manual_seed`, the epoch and the index only, as its crop does. A crop is
    degraded together with some pixels around it, so that its borders look like its middle.

    Options of its own, in the section `degradations` (docs/options.md has their defaults):
        clean_share: share of the samples that have the LQ crop of `dataroot_lq`.
        blur_share, blur_sigma: share of the other samples that are blurred; range of the standard deviation in LQ
            pixels.
        resize_share, resize_factor: share of the other samples that are resized twice; range of the first size,
            divided by the LQ size. The rest is shrunk at once, by bicubic interpolation.
        noise_share, noise_sigma: share of the other samples that are noisy; range of the standard deviation in levels
            of 8 bits.
        jpeg_share, jpeg_quality: share of the other samples that are compressed; range of the quality.

    Raises:
        UserError: as `CachedPairedImageDataset`, and for a phase other than `train`.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        if opt["phase"] != "train":
            raise UserError("type: DegradedPairedImageDataset is for training; validate with PairedImageDataset")
        self.strengths = DEGRADED_TRAINING_SET.completed(opt)["degradations"]
        super().__init__({key: value for key, value in opt.items() if key != "degradations"})

    def degradation(self, epoch: int, index: int) -> tuple[Degradation | None, np.random.RandomState]:
        """What is done to a sample (None: nothing), and the generator for its noise."""
        entropy = np.random.SeedSequence((self.seed, epoch, index, _OWN_NUMBERS))
        # RandomState's numbers are the same in all versions of NumPy; those of newer generators need not be.
        random = np.random.RandomState(np.random.MT19937(entropy))
        clean = random.uniform() < self.strengths["clean_share"]
        what = draw(self.strengths, random)
        return None if clean else what, random

    def _crop_of_lq(self, gt: np.ndarray, lq: np.ndarray, top: int, left: int, epoch: int, index: int) -> np.ndarray:
        what, random = self.degradation(epoch, index)
        if what is None:
            return super()._crop_of_lq(gt, lq, top, left, epoch, index)
        height, width = (length * self.scale for length in lq.shape[1:])
        return degraded_crop(gt[:, :height, :width], top, left, self.lq_size, self.scale, what, random)
