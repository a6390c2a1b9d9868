"""Samplers of a training or a test with any number of processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

__all__ = ["InferenceSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]


class _EpochAfterEpoch(Sampler):
    """Epochs without end from one generator; of their sequence each process takes every n-th index.

    ``seed`` is the same in all processes; None lets them agree on a random one. ``shuffle`` is for subclasses.
    """

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._in_random_order = shuffle
        self._generator_seed = comm.shared_random_seed() if seed is None else int(seed)
        self._process, self._processes = comm.get_rank(), comm.get_world_size()

    def _draw_epoch(self, generator: torch.Generator) -> torch.Tensor:
        """(N,) int64, the indices of one epoch of all processes."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._generator_seed)
        first = self._process  # place of this process's next index within the epoch
        while True:
            epoch = self._draw_epoch(generator)
            yield from epoch[first :: self._processes].tolist()
            first = (first - len(epoch)) % self._processes


class TrainingSampler(_EpochAfterEpoch):
    """All indices below ``size``, with ``shuffle`` in a new order in each epoch; seeds as in the base class."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if type(size) is not int:
            raise TypeError(f"The size of the data set is {size!r}. Expected an int.")
        if size < 1:
            raise ValueError(f"The size of the data set is {size}. Expected at least 1.")
        super().__init__(shuffle, seed)
        self._count = size

    def _draw_epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(self._count, generator=generator) if self._in_random_order else torch.arange(self._count)


class RandomSubsetTrainingSampler(TrainingSampler):
    """``int(size * subset_ratio)`` random indices, chosen by ``seed_subset``, in an order by ``seed_shuffle``."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size, shuffle, seed_shuffle)
        assert 0 < subset_ratio <= 1, f"The ratio of the subset is {subset_ratio}. Expected more than 0, at most 1."
        self._count, once = int(size * subset_ratio), TrainingSampler(size, seed=seed_subset)
        self._chosen = once._draw_epoch(torch.Generator().manual_seed(once._generator_seed))[: self._count]

    def _draw_epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._chosen[super()._draw_epoch(generator)]


class RepeatFactorTrainingSampler(_EpochAfterEpoch):
    """Indices that come per epoch as often as ``repeat_factors``, (N,) float, say on average.

    In each epoch a factor is rounded up with the probability of its fraction, and down otherwise.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(shuffle, seed)
        self._factors = repeat_factors

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[Mapping[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """(N,) float32 factors that let records with rare classes come more often.

        A class in the share f of images has max(1, sqrt(repeat_thresh / f)), or that without the root; an image has the
        largest of its classes, or 1 without any.
        """
        classes = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        images = Counter(category for of_image in classes for category in of_image)
        ratios = {category: repeat_thresh / (count / len(classes)) for category, count in images.items()}
        factors = {category: max(1.0, math.sqrt(ratio) if sqrt else ratio) for category, ratio in ratios.items()}
        return torch.tensor([max((factors[c] for c in of_image), default=1.0) for of_image in classes])

    def _draw_epoch(self, generator: torch.Generator) -> torch.Tensor:
        down = self._factors.trunc()
        rounded_up = torch.rand(len(down), generator=generator) < self._factors - down
        epoch = torch.repeat_interleave(down.long() + rounded_up)  # index i as often as number i says
        return epoch[torch.randperm(len(epoch), generator=generator)] if self._in_random_order else epoch


class InferenceSampler(Sampler):
    """Each index below ``size`` once, in consecutive shares of the processes; the first ones may take one more."""

    def __init__(self, size: int) -> None:
        assert size > 0, f"The size of the data set is {size}. Expected at least 1."
        self._share = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        """The share of a process; Detectron2's tests call it by this name."""
        each, more = divmod(total_size, world_size)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))

    def __iter__(self) -> Iterator[int]:
        yield from self._share

    def __len__(self) -> int:
        return len(self._share)
