"""Samplers of several processes that together walk one common sequence."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

__all__ = ["TrainingSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler", "InferenceSampler"]

logger = logging.getLogger(__name__)


class _InfiniteSampler(Sampler):
    """An endless sequence, the same in all processes, of which process r of w takes elements r, r+w, r+2w, ...

    The sequence is epoch after epoch of :meth:`_epoch`, drawn from one generator that is seeded once per iteration.
    """

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        # Without a seed the processes have to agree on one.
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Indices of one epoch, before they are shuffled."""
        raise NotImplementedError


def _checked_size(size: int) -> int:
    if isinstance(size, int) and size > 0:
        return size
    error = ValueError if isinstance(size, int) else TypeError
    raise error(f"TrainingSampler: size must be a positive int, got {size!r} of {type(size)}")


class TrainingSampler(_InfiniteSampler):
    """All indices of the data set, shuffled anew in each epoch, without end.

    Args:
        size: number of elements of the data set.
        shuffle: False for ``0, 1, ..., size-1`` again and again.
        seed: the same in all processes (negative is allowed); None to draw one and share it.

    Raises:
        TypeError: ``size`` is not an int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        self._size = _checked_size(size)
        super().__init__(shuffle, seed)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """A fixed random part of the data set, shuffled anew in each epoch.

    Args:
        size: number of elements of the data set.
        subset_ratio: share that is used, in (0, 1].
        shuffle: shuffle the part in each epoch.
        seed_shuffle: seed of the order, see :class:`TrainingSampler`.
        seed_subset: seed of the choice; None to draw one and share it.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}"
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0, f"{subset_ratio} of {size} elements is not even one"
        self._seed_subset = int(comm.shared_random_seed() if seed_subset is None else seed_subset)
        chooser = torch.Generator()
        chooser.manual_seed(self._seed_subset)
        self._indexes_subset = torch.randperm(size, generator=chooser)[: self._size_subset]
        logger.info("Training on %d of %d elements, chosen at random", self._size_subset, size)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._indexes_subset


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """Elements appear ``repeat_factors[i]`` times per epoch on average (rare classes more often).

    Args:
        repeat_factors: (size,) non-negative floats; the fraction is rounded up or down at random in each epoch.
        shuffle: shuffle each epoch.
        seed: see :class:`TrainingSampler`.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(shuffle, seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[Mapping[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Factor of each picture: that of its rarest class, ``max(1, sqrt(thresh / frequency))``.

        Args:
            dataset_dicts: records with ``annotations``.
            repeat_thresh: classes in a smaller share of the pictures than this are repeated.
            sqrt: False for the plain quotient.

        Returns:
            (number of pictures,) float32; 1 for pictures without annotations.
        """
        classes = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        counts = Counter(itertools.chain.from_iterable(classes))
        factors = {}
        for category, count in sorted(counts.items()):
            frequency = count / len(classes)
            ratio = repeat_thresh / frequency
            factors[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
            logger.info("Cat ID %s: freq=%.2f, rep=%.2f", category, frequency, factors[category])
        return torch.tensor([max((factors[c] for c in found), default=1.0) for found in classes], dtype=torch.float32)

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """Indices of one epoch in ascending order, repeated after stochastic rounding of the factors."""
        round_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + round_up).long()
        return torch.arange(len(repeats)).repeat_interleave(repeats)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._get_epoch_indices(generator)


class InferenceSampler(Sampler):
    """Each index exactly once over all processes, in contiguous blocks; the first processes take the extra ones.

    Args:
        size: number of elements of the data set, at least 1.
    """

    def __init__(self, size: int) -> None:
        assert size > 0, f"a data set to evaluate must not be empty, got size {size}"
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, extra = divmod(total_size, world_size)
        begin = rank * share + min(rank, extra)
        return range(begin, begin + share + (rank < extra))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
