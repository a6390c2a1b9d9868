"""Loaders of records, for training and tests."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.config import configurable
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored
from torch.utils import data as torchdata

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler

__getattr__ = refuse(__name__, "filter_images_with_few_keypoints load_proposals_into_dataset")

logger = logging.getLogger(__name__)

_Records = list[dict[str, Any]]
_Mapper = Callable[[dict[str, Any]], Any]


def filter_images_with_only_crowd_annotations(dataset_dicts: _Records) -> _Records:
    """The records with at least one annotation that is no crowd."""
    kept = [r for r in dataset_dicts if any(anno.get("iscrowd", 0) == 0 for anno in r["annotations"])]
    logger.info("Kept %d of %d images: those with an object that is no crowd", len(kept), len(dataset_dicts))
    return kept


def print_instances_class_histogram(dataset_dicts: _Records, class_names: Sequence[str]) -> None:
    """Log how many objects, crowds apart, there are of each class; AssertionError for a class without a name."""
    objects = chain.from_iterable(record["annotations"] for record in dataset_dicts)
    counts = Counter(anno["category_id"] for anno in objects if anno.get("iscrowd", 0) == 0)
    nameless = [category for category in counts if not 0 <= category < len(class_names)]
    assert not nameless, f"Annotations have category_id {nameless}. Expected 0 to {len(class_names) - 1}."
    cells = [(name, counts[number]) for number, name in enumerate(class_names)]
    rows = [chain.from_iterable(cells[start : start + 3]) for start in range(0, len(cells), 3)]
    table = tabulate(
        [*rows, ["all", counts.total()]], headers=["class", "objects"] * min(3, len(cells)), tablefmt="pipe"
    )
    log_first_n(logging.INFO, f"Objects of {len(cells)} classes:\n" + colored(table, "cyan"), key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load the data sets of these names, one after the other: records, or a torch ``Dataset`` where these are such.

    Args:
        names: of ``DatasetCatalog``.
        filter_empty: leave out images without an object that is no crowd; AssertionError if nothing is left.
        min_keypoints: needs Detectron2 itself, as do ``proposal_files``.
        check_consistency: raise ValueError if class names differ; count the objects of each class.
    """
    names = [names] if isinstance(names, str) else names
    assert len(names), "No data set is named. Expected at least one, e.g. in DATASETS.TRAIN."
    if min_keypoints > 0 or proposal_files:
        raise NotImplementedError("Keypoints, and proposals from files, need Detectron2 itself.")
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return loaded[0] if len(loaded) == 1 else torchdata.ConcatDataset(loaded)
    empty = [name for name, records in zip(names, loaded) if not len(records)]
    assert not empty, f"Without a record: {empty}. Check what the functions in DatasetCatalog return."
    records = list(chain.from_iterable(loaded))
    if "annotations" in records[0]:
        if filter_empty:
            records = filter_images_with_only_crowd_annotations(records)
        if check_consistency and all(hasattr(MetadataCatalog.get(name), "thing_classes") for name in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(records, MetadataCatalog.get(names[0]).thing_classes)
    assert records, f"No image of {', '.join(names)} is left after filtering."
    return records


def build_batch_data_loader(
    dataset: Any,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Load batches; arguments that are not named here are those of torch's ``DataLoader``.

    Args:
        dataset: a torch ``IterableDataset`` stands without ``sampler``.
        sampler: names the elements of this process.
        total_batch_size: elements in the batches of all processes together.
        aspect_ratio_grouping: see :class:`AspectRatioGroupedDataset`.
        collate_fn: from the list of elements to a batch; None leaves it the list.
        single_gpu_batch_size: elements in a batch of each process, with ``total_batch_size`` 0.
        seed: from which the workers' seeds are drawn.
    """
    if single_gpu_batch_size and total_batch_size > 0:
        raise ValueError("total_batch_size and single_gpu_batch_size are both given. Expected one of them.")
    batch_size, rest = divmod(total_batch_size, comm.get_world_size())
    if single_gpu_batch_size:
        batch_size = single_gpu_batch_size
    else:
        assert batch_size > 0 == rest, f"Batches of {total_batch_size} for {comm.get_world_size()} processes."
    if not isinstance(dataset, torchdata.IterableDataset):
        # Workers take turns by whole batches, so that only the last batch may be incomplete.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    else:
        assert sampler is None, "The data set is a stream, which has its own order. Expected no sampler."
    options = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    logger.info("Batches of %d in each process", batch_size)
    if not aspect_ratio_grouping:
        to_batch = collate_fn or trivial_batch_collator
        return torchdata.DataLoader(dataset, batch_size, drop_last=drop_last, collate_fn=to_batch, **options)
    assert drop_last, "Batches by aspect ratio leave incomplete ones out. Expected drop_last=True."
    one_by_one = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
    grouped = AspectRatioGroupedDataset(one_by_one, batch_size)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _arguments_for_training(
    cfg: Any, mapper: _Mapper | None = None, *, dataset: Any = None, sampler: torchdata.Sampler | None = None
) -> dict[str, Any]:
    """Arguments of :func:`build_detection_train_loader`; those that are not given come from the config."""
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _training_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": mapper or DatasetMapper(cfg, True),
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _training_sampler(cfg: Any, dataset: Any) -> torchdata.Sampler:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names; ValueError for an unknown one."""
    options = cfg.DATALOADER
    logger.info("Sampler of training: %s", options.SAMPLER_TRAIN)
    if options.SAMPLER_TRAIN == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if options.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), options.RANDOM_SUBSET_RATIO)
    if options.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors_of = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        factors = factors_of(dataset, options.REPEAT_THRESHOLD, sqrt=options.REPEAT_SQRT)
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN {options.SAMPLER_TRAIN!r} is not in the stand-in for Detectron2. Expected "
        "TrainingSampler, RepeatFactorTrainingSampler or RandomSubsetTrainingSampler."
    )


@configurable(from_config=_arguments_for_training)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: _Mapper | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Load batches for training, without end.

    Made of a config, ``build_detection_train_loader(cfg, mapper=None, *, dataset=None, sampler=None)``, or of a list of
    records or a torch ``Dataset``, a function that maps each record to what the model takes, a sampler (None shuffles;
    a stream takes none), and the arguments of :func:`build_batch_data_loader`.
    """
    batching = {"aspect_ratio_grouping": aspect_ratio_grouping, "num_workers": num_workers, "collate_fn": collate_fn}
    mapped, sampler = _mapped_and_sampled(dataset, mapper, sampler, TrainingSampler)
    return build_batch_data_loader(mapped, sampler, total_batch_size, **batching, **kwargs)


def _mapped_and_sampled(
    dataset: Any, mapper: _Mapper | None, sampler: Any, default_sampler: Callable[[int], torchdata.Sampler]
) -> tuple[Any, torchdata.Sampler | None]:
    """A torch data set of mapped elements, and its sampler: none for a stream."""
    source = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    mapped = source if mapper is None else MapDataset(source, mapper)
    if isinstance(source, torchdata.IterableDataset):
        assert sampler is None, "The data set is a stream, which has its own order. Expected no sampler."
        return mapped, None
    sampler = default_sampler(len(source)) if sampler is None else sampler
    assert isinstance(sampler, torchdata.Sampler), f"The sampler is a {type(sampler).__name__}. Expected torch's."
    return mapped, sampler


def _arguments_for_a_test(cfg: Any, dataset_name: str | Sequence[str], mapper: _Mapper | None = None) -> dict[str, Any]:
    """Arguments of :func:`build_detection_test_loader` for a data set or several."""
    proposals = cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False, proposal_files=proposals)
    return {
        "dataset": dataset,
        "mapper": mapper or DatasetMapper(cfg, False),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if isinstance(dataset, torchdata.IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_arguments_for_a_test)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: _Mapper | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """Load each element once, for a test, in batches of ``batch_size`` in each process.

    Made of a config, ``build_detection_test_loader(cfg, dataset_name, mapper=None)``, or of arguments as for training;
    without a sampler the processes share the elements.
    """
    dataset, sampler = _mapped_and_sampled(dataset, mapper, sampler, InferenceSampler)
    to_batch = collate_fn or trivial_batch_collator
    return torchdata.DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=to_batch)


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """The list itself: images of a batch differ in size, so models stack them."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed all generators of a worker differently from those of the others."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
