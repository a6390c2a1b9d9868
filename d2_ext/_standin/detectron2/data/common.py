"""Wrappers of data sets: stored lists, mapped records, sampled streams and batches of one orientation."""

from __future__ import annotations

import contextlib
import copy as copylib
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils.serialize import PicklableWrapper
from torch.utils import data
from torch.utils.data.sampler import Sampler

__all__ = ["MapDataset", "DatasetFromList", "AspectRatioGroupedDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)

_RETRIES_BEFORE_WARNING = 3


class _MapIterableDataset(data.IterableDataset):
    """``map_func`` over a stream; elements mapped to None are left out."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for element in self._dataset:
            mapped = self._map_func(element)
            if mapped is not None:
                yield mapped


class MapDataset(data.Dataset):
    """A data set with ``map_func`` applied to its elements.

    None from ``map_func`` means "not usable": a stream skips the element, an indexed data set answers with a randomly
    chosen other one (from those that have not failed). A stream gives a stream, whatever the class says.

    Args:
        dataset: indexed data set or ``IterableDataset``.
        map_func: any callable; lambdas survive the way into worker processes.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        # One fixed seed in every process: which element replaces a broken one can be reproduced.
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Any]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        for failures in itertools.count(1):
            mapped = self._map_func(self._dataset[current])
            change = self._fallback_candidates.discard if mapped is None else self._fallback_candidates.add
            change(current)
            if mapped is not None:
                break
            if not self._fallback_candidates:
                raise ValueError(f"the mapper returned None for each of the {len(self)} elements")
            current = self._rng.choice([*self._fallback_candidates])
            if failures >= _RETRIES_BEFORE_WARNING:
                logger.warning("Element %d could not be mapped, nor could its replacements: %d tries", idx, failures)
        return mapped


class _TorchSerializedList:
    """Pickled elements end to end in one uint8 tensor, so that worker processes share the memory."""

    def __init__(self, lst: Sequence[Any]) -> None:
        logger.info("Serializing %d elements into one byte tensor ...", len(lst))
        pickled = [np.frombuffer(pickle.dumps(element, protocol=-1), dtype=np.uint8) for element in lst]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(pickled))
        logger.info("Serialized dataset takes %.2f MiB", len(self._bytes) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        if idx < 0 or idx >= len(self):
            raise IndexError(f"index {idx} of a list of {len(self)}")
        begin = int(self._ends[idx - 1]) if idx > 0 else 0
        return pickle.loads(memoryview(self._bytes[begin : int(self._ends[idx])].numpy()))


_serialize_method: Callable[[Sequence[Any]], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[Sequence[Any]], Any]) -> Iterator[None]:
    """Use ``new`` for lists that are wrapped inside the ``with`` block with ``serialize=True``."""
    global _serialize_method
    before, _serialize_method = _serialize_method, new
    try:
        yield
    finally:
        _serialize_method = before


class DatasetFromList(data.Dataset):
    """A list as an indexed data set.

    Args:
        lst: the elements.
        copy: hand out deep copies, so that a mapper may edit them (serialised elements are new objects anyway).
        serialize: True to keep the elements as bytes shared by all workers, False to keep the list, or a function from
            the list to an indexable object.
    """

    def __init__(
        self, lst: Sequence[Any], copy: bool = True, serialize: bool | Callable[[Sequence[Any]], Any] = True
    ) -> None:
        if not (isinstance(serialize, bool) or callable(serialize)):
            raise TypeError(f"serialize must be a bool or a function, got {serialize!r}")
        self._copy = copy
        self._serialize = serialize is not False
        self._lst = lst
        if self._serialize:
            method = serialize if callable(serialize) else _serialize_method
            logger.info("Serializing the dataset using: %s", method)
            self._lst = method(lst)

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        return copylib.deepcopy(element) if self._copy and not self._serialize else element


def _own_share(indices: Iterable[Any], chunk_size: int) -> Iterator[Any]:
    """Of a stream that each worker walks, the chunks that fall to this worker (all of it outside a worker)."""
    info = data.get_worker_info()
    workers, own = (1, 0) if info is None else (info.num_workers, info.id)
    for position, index in enumerate(indices):
        if position // chunk_size % workers == own:
            yield index


class ToIterableDataset(data.IterableDataset):
    """An indexed data set read in the order of a sampler.

    Args:
        dataset: indexed data set.
        sampler: cheap to iterate, since every worker walks all of it and drops what is not its share.
        shard_sampler: False if the sampler itself already differs from worker to worker.
        shard_chunk_size: how many indices in a row go to one worker (the batch size, to keep batches whole).
    """

    def __init__(
        self, dataset: data.Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        order = _own_share(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in order:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of landscape pictures only, or of the others (portrait and square) only, to save padding.

    A batch appears as soon as its group is full, so the order depends on the order of the stream. What is left over
    waits in ``_buckets``, also across iterations; incomplete batches are never given out.

    Args:
        dataset: stream of dicts with ``width`` and ``height``.
        batch_size: pictures per batch.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict[str, Any]]] = [[], []]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for record in self.dataset:
            group = 0 if record["width"] > record["height"] else 1
            self._buckets[group].append(record)
            if len(self._buckets[group]) == self.batch_size:
                # Emptied before the yield: a consumer may never come back for the code after it.
                batch, self._buckets[group] = self._buckets[group], []
                yield batch
