"""The training loader: the same images with the same augmentations for any number of workers, from any batch on."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from d2_ext.data.randomness import SAMPLER, SAMPLES, generators_preserved, seed_generators
from d2_ext.errors import DatasetError, TrainingError

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.utils import comm
from torch.utils import data as torchdata

__all__ = ["SamplesByPosition", "TrainLoader", "raise_if_a_worker_died", "reproducible_loader"]

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # position in the stream of all processes, index in the data set
MAX_REPLACEMENTS = 100


class SamplesByPosition(torchdata.Dataset):
    """Mapped samples, each with random numbers of its own.

    Args:
        records: indexed data set.
        mapper: from a record to what the model takes; for None another record, drawn at random, takes its place.
        seed: of the run.
    """

    def __init__(self, records: Any, mapper: Callable[[Any], Any], seed: int) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, place: Place) -> Any:
        """The sample at ``place``.

        Raises:
            DatasetError: if the mapper can use neither the record nor any of 100 others.
        """
        position, index = place
        with generators_preserved():
            seed_generators(self.seed, SAMPLES, position)
            others = torch.randint(len(self.records), (MAX_REPLACEMENTS,)).tolist()
            seed_generators(self.seed, SAMPLES, position)
            for candidate in (index, *others):
                sample = self.mapper(self.records[candidate])
                if sample is not None:
                    return sample
        raise DatasetError(
            f"The mapper returned None for record {index} and for {MAX_REPLACEMENTS} others in its place. "
            "Expected at least some usable records. Check the data set and the mapper."
        )


class TrainLoader:
    """Endless batches of ``DATASETS.TRAIN``.

    The order of images is that of Detectron2's loader without or with one worker, for any number of workers. The
    processes of a run together take one stream of samples, so that two with a batch of two see what one with a batch
    of four sees (unless ``DATALOADER.ASPECT_RATIO_GROUPING`` makes each wait for its own groups).

    Args:
        cfg: reads ``DATALOADER``, ``SOLVER.IMS_PER_BATCH`` and ``SEED``.
        records: of ``get_detection_dataset_dicts``.
        mapper: see :class:`SamplesByPosition`.

    Raises:
        DatasetError: if the processes cannot share the batch.
    """

    def __init__(self, cfg: CfgNode, records: list[dict[str, Any]], mapper: Callable[[Any], Any]) -> None:
        self._cfg = cfg
        self._records = DatasetFromList(records, copy=False)  # in bytes, which workers share
        self._mapper = mapper
        total, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
        if total < 1 or total % processes:
            raise DatasetError(
                f"SOLVER.IMS_PER_BATCH {total} cannot be shared by {processes} processes: it is the number of images "
                f"of all of them together. Give a positive multiple of {processes}."
            )
        self._batch_size = total // processes
        # 0 for landscape images, 1 for the others, as AspectRatioGroupedDataset tells them apart.
        self._groups: list[int] | None = None
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
            self._groups = [0 if record["width"] > record["height"] else 1 for record in records]
        self.start_at(0, max(cfg.SEED, 0))

    def start_at(self, batch: int, seed: int) -> None:
        """Let the next iterator begin with that batch of the run of that seed.

        Earlier batches are counted off without loading an image, some millions of samples in seconds.
        """
        self._first, self._seed = batch, seed
        with generators_preserved():  # samplers that Detectron2 gives no seed draw one from numpy
            seed_generators(seed, SAMPLER)
            made = build_detection_train_loader.from_config(self._cfg, mapper=self._mapper, dataset=self._records)
        self._sampler: Iterable[int] = made["sampler"]

    def __iter__(self) -> Iterator[list[Any]]:
        batches = itertools.islice(self._batches(), self._first, None)
        loader = torchdata.DataLoader(
            SamplesByPosition(self._records, self._mapper, self._seed),
            sampler=_Stream(batches),
            batch_size=None,
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # or it would draw from the one that the model draws from
        )
        samples = iter(loader)
        while True:
            try:
                yield [next(samples) for _ in range(self._batch_size)]
            except RuntimeError as error:
                raise_if_a_worker_died(error)
                raise
            except (ConnectionError, EOFError) as error:  # it died while it handed a sample over
                raise TrainingError(
                    f"A process that loads data died: the connection to it broke ({error or type(error).__name__}). "
                    "Killed often means that memory ran out: lower DATALOADER.NUM_WORKERS. Then continue with --resume."
                ) from error

    def _batches(self) -> Iterator[list[Place]]:
        """The batches of this process from the first on, as places."""
        rank, processes = comm.get_rank(), comm.get_world_size()
        waiting: tuple[list[Place], list[Place]] = ([], [])
        for number, index in enumerate(self._sampler):
            group = waiting[self._groups[index] if self._groups is not None else 0]
            group.append((number * processes + rank, index))
            if len(group) == self._batch_size:
                yield group[:]
                group.clear()


def reproducible_loader(
    cfg: CfgNode, mapper: Callable[[Any], Any], records: list[dict[str, Any]] | None = None
) -> Iterable[list[Any]]:
    """Build the training loader of a config.

    A data set that is no list of records (a torch ``Dataset``) gets Detectron2's loader: a resumed run starts it anew.

    Args:
        cfg: names data sets, sampler and workers, as for ``build_detection_train_loader``.
        mapper: from a record to what the model takes.
        records: instead of those of ``DATASETS.TRAIN``.
    """
    if records is None:
        records = build_detection_train_loader.from_config(cfg, mapper=mapper)["dataset"]
    if not isinstance(records, list):
        logger.warning("The training data is no list of records: --resume will start its order anew.")
        return build_detection_train_loader(cfg, mapper=mapper, dataset=records)
    return TrainLoader(cfg, records, mapper)


def raise_if_a_worker_died(error: RuntimeError) -> None:
    """Turn torch's report of a dead worker process into one with advice; other errors are left alone.

    Raises:
        TrainingError: naming the worker and the signal.
    """
    text = str(error)
    if "DataLoader worker" not in text or isinstance(error, TrainingError):
        return
    raise TrainingError(
        f"A process that loads data died: {text.strip().rstrip('.')}. Killed often means that memory ran out: lower "
        "DATALOADER.NUM_WORKERS. Then continue with --resume."
    ) from error


class _Stream(torchdata.Sampler):
    def __init__(self, batches: Iterator[list[Place]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Place]:
        return itertools.chain.from_iterable(self._batches)


def _as_it_is(sample: Any) -> Any:
    return sample


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and many schedulers signal all processes at once; the run still needs its workers to finish its step.

    A worker outlives the first SIGTERM only: the second is meant for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, once)
