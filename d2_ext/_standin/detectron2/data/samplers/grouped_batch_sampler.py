"""Batches whose elements belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler

from ..common import batches_of_a_kind

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Batches of indices of one group each, as they become full; what is left waits for the next iteration.

    ``group_ids`` has the group of each index of ``sampler``. There is no ``len`` (NotImplementedError).
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"The sampler is a {type(sampler).__name__}. Expected a torch Sampler.")
        self.sampler, self.batch_size, self.group_ids = sampler, batch_size, np.asarray(group_ids)
        assert self.group_ids.ndim == 1, f"The group ids have shape {self.group_ids.shape}. Expected a flat list."
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        return batches_of_a_kind(self.sampler, lambda idx: int(self.group_ids[idx]), self.batch_size, self._waiting)

    def __len__(self) -> int:
        raise NotImplementedError("The number of batches depends on the groups that the sampler yields.")
