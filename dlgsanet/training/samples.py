"""The endless stream of training samples. It is a function of the seed and of the number of samples consumed so far.

Each epoch is a new permutation of the data set. A batch may contain the last samples of one epoch and the first of the
next, so that all iterations have the same number of samples. The stream does not depend on the number of workers. Over
all ranks together it does not depend on their number either.
"""

import functools
import random
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from dlgsanet.errors import UserError, reason_of

Key = tuple[int, int]  # epoch, position within the epoch's (enlarged) data set


class SampleStream(Sampler[Any]):
    """Batches of this rank without end, each a list of keys (epoch, position).

    Args:
        length: samples in an epoch.
        batch_size: samples in a batch of one rank.
        seed: of the permutations.
        start: samples already consumed by all ranks together.
        rank, world_size: which of how many ranks this is.
        shuffle: False takes the samples in their order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.first = start + rank * batch_size
        self.step = world_size * batch_size
        self._permutation = functools.lru_cache(maxsize=2)(self._draw_permutation)

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.first
        while True:
            yield [self.key(number) for number in range(first, first + self.batch_size)]
            first += self.step

    def key(self, number: int) -> Key:
        """The key of the `number`-th sample of the stream."""
        epoch, place = divmod(number, self.length)
        return epoch, self._permutation(epoch)[place] if self.shuffle else place

    def _draw_permutation(self, epoch: int) -> list[int]:
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(seed)).tolist()


class SeededSamples(Dataset[Any]):
    """Makes each sample of a data set a function of (seed, epoch, position).

    The data set may use the random generators of Python, NumPy and PyTorch: they are seeded before each sample.

    Args:
        dataset: takes an index; a position beyond its length wraps around (BasicSR's `dataset_enlarge_ratio`). A
            data set with a method ``sample(epoch, index)`` is responsible for its own randomness.
        seed: the run's.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: Key) -> Any:
        if hasattr(self.dataset, "sample"):
            return self.dataset.sample(*key)
        index = key[1] % len(self.dataset)
        words = np.random.SeedSequence((self.seed, *key)).generate_state(3).tolist()
        random.seed(words[0])
        np.random.seed(words[1])
        with torch.random.fork_rng(devices=[]):  # without workers the network's own randomness must not be reset
            torch.manual_seed(words[2])
            return read_sample(self.dataset, index)


def unopened(dataset: Any) -> Any:
    """A copy to read samples from, before the data set is sent to workers.

    A data set may open its files when it is first read, as BasicSR's do, and an open database cannot be sent.
    """
    twin = copy(dataset)
    for name, value in getattr(dataset, "__dict__", {}).items():
        if isinstance(value, (dict, list)):
            setattr(twin, name, copy(value))
    return twin


def read_sample(dataset: Any, index: int) -> Any:
    """A sample of a data set.

    Raises:
        UserError: it cannot be read; the message names its files.
    """
    try:
        return dataset[index]
    except UserError:
        raise
    except Exception as error:  # readers of damaged images raise many kinds
        files = dataset.paths[index] if hasattr(dataset, "paths") else f"sample {index}"
        names = " and ".join(map(str, files.values())) if isinstance(files, dict) else files
        raise UserError(f"{names}: cannot be read ({reason_of(error)})") from error
