"""Batches of indices of one group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Cuts the stream of a sampler into batches whose indices belong to one group, in order of completion.

    Args:
        sampler: gives indices in ``[0, N)``.
        group_ids: N integers, the group of each index.
        batch_size: indices per batch; what is left over waits for the next iteration.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"expected a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, self.group_ids.shape
        self.batch_size = batch_size
        self.buffer_per_group: dict[int, list[int]] = {group: [] for group in np.unique(self.group_ids).tolist()}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            group = int(self.group_ids[index])
            self.buffer_per_group[group].append(index)
            if len(self.buffer_per_group[group]) == self.batch_size:
                batch, self.buffer_per_group[group] = self.buffer_per_group[group], []
                yield batch

    def __len__(self) -> int:
        raise NotImplementedError("how many batches there are depends on the order of the groups")
