"""Data sets made of others: lists in shared memory, mapped elements, streams, batches of one orientation."""

from __future__ import annotations

import contextlib
import copy as copying
import io
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

__all__ = ["DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class MapDataset(data.Dataset):
    """A data set whose elements go through ``map_func``, which may be a lambda.

    Where it returns None, another element, drawn at random, takes the place; ValueError if it did so for each. Of an
    ``IterableDataset`` comes a stream instead, which leaves such elements out.
    """

    def __new__(cls, dataset: Any = None, map_func: Any = None) -> Any:  # without arguments when unpickled
        return _MappedStream(dataset, map_func) if isinstance(dataset, data.IterableDataset) else super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._source, self._function = dataset, PicklableWrapper(map_func)
        self._draws = random.Random(42)
        self._unusable: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, idx: int) -> Any:
        place, failures = int(idx), 0
        while (mapped := self._function(self._source[place])) is None:
            failures += 1
            if failures >= 3:
                logger.warning("The mapper gave None for element %d and in its place, %d times so far.", idx, failures)
            self._unusable.add(place)
            usable = [i for i in range(len(self)) if i not in self._unusable]
            if not usable:
                raise ValueError(f"The mapper gave None for all {len(self)} elements. Check the data and the mapper.")
            place = self._draws.choice(usable)
        self._unusable.discard(place)
        return mapped


class _MappedStream(data.IterableDataset):
    """The stream that :class:`MapDataset` makes of an ``IterableDataset``."""

    def __init__(self, stream: Any, function: Callable[[Any], Any]) -> None:
        self._stream, self._function = stream, PicklableWrapper(function)

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        return (mapped for mapped in map(self._function, self._stream) if mapped is not None)


class _PickledList:
    """A list as one tensor of bytes, which processes share without the copies that reference counts cause."""

    def __init__(self, elements: Sequence[Any]) -> None:
        if not elements:
            raise ValueError("An empty list cannot be serialized. Expected at least one element.")
        pickles, ends = io.BytesIO(), [0]
        for element in elements:
            pickle.dump(element, pickles, protocol=-1)
            ends.append(pickles.tell())
        self._bytes = torch.from_numpy(np.frombuffer(pickles.getbuffer(), dtype=np.uint8))
        self._ends = torch.tensor(ends)
        logger.info("Serialized dataset: %d elements in %.2f MiB", len(elements), ends[-1] / 2**20)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, idx: int) -> Any:
        if not 0 <= idx < len(self):
            raise IndexError(f"Element {idx} of {len(self)}")
        start, end = self._ends[idx : idx + 2].tolist()
        return pickle.loads(memoryview(self._bytes[start:end].numpy()))


_serializers: list[Callable[[Sequence[Any]], Any]] = [_PickledList]  # the last one is the default


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[Sequence[Any]], Any]) -> Iterator[None]:
    """Let ``DatasetFromList(serialize=True)`` use ``new``, see there, within a ``with`` block."""
    _serializers.append(new)
    try:
        yield
    finally:
        _serializers.pop()


class DatasetFromList(data.Dataset):
    """A list as a data set.

    Args:
        copy: hand out deep copies, so that they may be edited; what was serialized is new at each access anyway.
        serialize: keep the elements as bytes, in memory that workers share; or a function from the list to an object
            with ``len`` and indices. False keeps the list.
    """

    def __init__(
        self, lst: Sequence[Any], copy: bool = True, serialize: bool | Callable[[Sequence[Any]], Any] = True
    ) -> None:
        if not callable(serialize) and not isinstance(serialize, bool):
            raise TypeError(f"serialize is {serialize!r}. Expected a bool or a function.")
        to_storage = _serializers[-1] if serialize is True else serialize
        self._elements = to_storage(lst) if to_storage else lst
        self._copies = copy and not to_storage

    def __len__(self) -> int:
        return len(self._elements)

    def __getitem__(self, idx: int) -> Any:
        element = self._elements[idx]
        return copying.deepcopy(element) if self._copies else element


class ToIterableDataset(data.IterableDataset):
    """An indexed data set as the stream of elements that a torch sampler names.

    With ``shard_sampler`` the workers of a ``DataLoader`` take turns by ``shard_chunk_size`` indices.
    """

    def __init__(
        self, dataset: data.Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        assert not isinstance(dataset, data.IterableDataset), "The data set is a stream already."
        assert isinstance(sampler, Sampler), f"The sampler is a {type(sampler).__name__}. Expected a torch Sampler."
        self._source, self._order = dataset, sampler
        self._turn_length = shard_chunk_size if shard_sampler else 0

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info() if self._turn_length else None
        for number, idx in enumerate(self._order):
            if worker is None or number // self._turn_length % worker.num_workers == worker.id:
                yield self._source[idx]

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]


def batches_of_a_kind(
    elements: Iterable[Any], kind_of: Callable[[Any], int], batch_size: int, waiting: Any
) -> Iterator[list[Any]]:
    """Lists of ``batch_size`` elements of one kind, as they become full; ``waiting[kind]`` are lists of the others."""
    for element in elements:
        kind = kind_of(element)
        waiting[kind].append(element)
        if len(waiting[kind]) == batch_size:
            batch, waiting[kind] = waiting[kind], []  # first: whoever iterates may never come back
            yield batch


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of images that are all wider than high, or all not: they need little padding.

    ``dataset`` yields dicts with ``width`` and ``height``. What is left of either kind when it ends waits for the next
    iteration.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self._buckets: list[list[dict[str, Any]]] = [[], []]  # wide; square or high

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return batches_of_a_kind(self.dataset, lambda r: int(r["width"] <= r["height"]), self.batch_size, self._buckets)
