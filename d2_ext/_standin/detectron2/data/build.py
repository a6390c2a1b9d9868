"""Builders of the loaders for training and testing."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2._missing import refuse
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import _log_api_usage, log_first_n
from tabulate import tabulate
from termcolor import colored

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_train_loader",
    "build_detection_test_loader",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
]

__getattr__ = refuse(__name__, ["load_proposals_into_dataset"])

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


def filter_images_with_only_crowd_annotations(dataset_dicts: Records) -> Records:
    """Keep records with at least one annotation that is not a crowd."""
    kept = [r for r in dataset_dicts if any(a.get("iscrowd", 0) == 0 for a in r["annotations"])]
    logger.info("Removed %d images with no usable annotations. %d left.", len(dataset_dicts) - len(kept), len(kept))
    return kept


def filter_images_with_few_keypoints(dataset_dicts: Records, min_keypoints_per_image: int) -> Records:
    """Keep records with at least that many labelled keypoints (visibility above 0) over all their annotations."""

    def labelled(record: dict[str, Any]) -> int:
        return sum(v > 0 for anno in record["annotations"] for v in anno.get("keypoints", [])[2::3])

    kept = [r for r in dataset_dicts if labelled(r) >= min_keypoints_per_image]
    logger.info(
        "Removed %d images with fewer than %d keypoints.", len(dataset_dicts) - len(kept), min_keypoints_per_image
    )
    return kept


def _count_instances(dataset_dicts: Records, num_classes: int) -> np.ndarray:
    """(num_classes,) annotations of each class, crowds left out."""
    annos = itertools.chain.from_iterable(record["annotations"] for record in dataset_dicts)
    classes = np.array([a["category_id"] for a in annos if not a.get("iscrowd", 0)], dtype=int)
    for category in (classes.min(), classes.max()) if len(classes) else ():
        assert 0 <= category < num_classes, f"invalid category_id {category} in a data set of {num_classes} classes"
    return np.bincount(classes, minlength=num_classes)


def print_instances_class_histogram(dataset_dicts: Records, class_names: Sequence[str]) -> None:
    """Log a table of how many instances each class has.

    Args:
        dataset_dicts: with annotations whose ``category_id`` is in [0, number of classes).
        class_names: name of each class.
    """
    counts = _count_instances(dataset_dicts, len(class_names))
    cells: list[Any] = []
    for name, count in zip(class_names, counts.tolist()):
        cells += [name if len(name) <= 13 else f"{name[:11]}..", count]
    columns = min(6, len(cells))
    cells += [None] * (columns - len(cells) % columns)
    if len(class_names) > 1:
        cells += ["total", int(counts.sum())]
    table = tabulate(
        itertools.zip_longest(*(cells[start::columns] for start in range(columns))),
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    text = f"Distribution of instances among all {len(class_names)} categories:\n{colored(table, 'cyan')}"
    log_first_n(logging.INFO, text, key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Load data sets by name and put them one after the other.

    Args:
        names: one name or several.
        filter_empty: drop pictures without an annotation that is not a crowd.
        min_keypoints: drop pictures with fewer labelled keypoints.
        proposal_files: must be None; proposals are outside the subset.
        check_consistency: all data sets must have the same ``thing_classes``; also logs their histogram.

    Returns:
        List of records; or the data set itself, if a name gives a torch ``Dataset`` (several are concatenated).
    """
    names = [names] if isinstance(names, str) else names
    assert len(names), "no name of a data set was given"
    if proposal_files is not None:
        raise NotImplementedError("precomputed proposals (MODEL.LOAD_PROPOSALS) need Detectron2 itself")
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return torchdata.ConcatDataset(loaded) if len(loaded) > 1 else loaded[0]
    for name, records in zip(names, loaded):
        assert len(records), f"data set '{name}' is empty"

    dataset_dicts = list(itertools.chain.from_iterable(loaded))
    if "annotations" in dataset_dicts[0]:
        if filter_empty:
            dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
        if min_keypoints > 0:
            dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
        # Data sets without class names are legal; there is nothing to compare then.
        if check_consistency and all(hasattr(MetadataCatalog.get(name), "thing_classes") for name in names):
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert len(dataset_dicts), f"no usable picture in {', '.join(names)}"
    return dataset_dicts


def _batch_size_per_process(total: int, single: int | None) -> int:
    if single:
        if total:
            raise ValueError("give either total_batch_size or single_gpu_batch_size, not both")
        return single
    world_size = get_world_size()
    assert total > 0, f"the total batch size must be positive, got {total}"
    assert total % world_size == 0, (
        f"the total batch size {total} must be a multiple of the number of processes, {world_size}"
    )
    return total // world_size


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
    """Build a loader whose batches are lists of elements.

    Args:
        dataset: indexed, or a stream.
        sampler: order of an indexed data set; None for a stream.
        total_batch_size: over all processes; 0 or None if ``single_gpu_batch_size`` is given.
        aspect_ratio_grouping: batches of one orientation, see :class:`AspectRatioGroupedDataset`.
        num_workers: worker processes.
        collate_fn: from a list of elements to a batch; the list itself by default.
        drop_last: False to give out the last, incomplete batch, too.
        single_gpu_batch_size: batch size of this process.
        prefetch_factor: batches prepared ahead by each worker.
        persistent_workers: see ``torch.utils.data.DataLoader``, as for ``pin_memory`` and ``kwargs``.
        pin_memory: see above.
        seed: of the loader's generator, from which the workers get their seeds.
        **kwargs: see above.
    """
    batch_size = _batch_size_per_process(total_batch_size, single_gpu_batch_size)
    is_stream = isinstance(dataset, torchdata.IterableDataset)
    assert not (is_stream and sampler is not None), "a stream has its own order: sampler must be None"
    dataset = dataset if is_stream else ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    logger.info("Making batched data loader with batch_size=%d", batch_size)
    options = dict(
        num_workers=num_workers,
        worker_init_fn=worker_init_reset_seed,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers,
        pin_memory=pin_memory,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    )
    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return torchdata.DataLoader(
            dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **options
        )
    assert drop_last, "aspect_ratio_grouping never gives out incomplete batches: drop_last must stay True"
    # Single elements come out of the workers and are grouped here, in the main process.
    singles = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
    batches = AspectRatioGroupedDataset(singles, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _weighted_sampler(cfg: Any, balance_categories: bool) -> RepeatFactorTrainingSampler:
    """Sampler by DATASETS.TRAIN_REPEAT_FACTOR, pairs of (data set name, factor), which has no default."""
    factor_of = dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)
    unknown = factor_of.keys() - set(cfg.DATASETS.TRAIN)
    assert not unknown, f"DATASETS.TRAIN_REPEAT_FACTOR names data sets that are not in DATASETS.TRAIN: {unknown}"
    factors = []
    for name in cfg.DATASETS.TRAIN:
        records = _training_records(cfg, [name])
        per_image = torch.ones(len(records))
        if balance_categories:
            per_image = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
            )
        factors.append(per_image * factor_of.get(name, 1))
    repeat_factors = torch.cat(factors)
    if balance_categories:
        repeat_factors = repeat_factors / repeat_factors.min()
    return RepeatFactorTrainingSampler(repeat_factors)


def _training_records(cfg: Any, names: Sequence[str]) -> Any:
    return get_detection_dataset_dicts(
        names,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def _training_sampler(cfg: Any, dataset: Any) -> torchdata.Sampler | None:
    """The sampler named by DATALOADER.SAMPLER_TRAIN; None for a stream."""
    if isinstance(dataset, torchdata.IterableDataset):
        logger.info("Not using any sampler since the dataset is IterableDataset.")
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Using training sampler %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    if name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        return _weighted_sampler(cfg, balance_categories="Category" in name)
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN: no sampler is called '{name}'")


def _train_loader_from_config(
    cfg: Any, mapper: Callable | None = None, *, dataset: Any = None, sampler: torchdata.Sampler | None = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = _training_records(cfg, cfg.DATASETS.TRAIN)
        _log_api_usage("dataset." + cfg.DATASETS.TRAIN[0])
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "sampler": _training_sampler(cfg, dataset) if sampler is None else sampler,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _mapped(dataset: Any, mapper: Callable | None) -> Any:
    """Wrap a list and apply the mapper."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build the endless loader of training; also called as ``(cfg, mapper=None, *, dataset=None, sampler=None)``.

    Args:
        dataset: list of records, or a torch ``Dataset``.
        mapper: from a record to what the model takes; from a config, ``DatasetMapper(cfg, True)``.
        sampler: of an indexed data set, :class:`TrainingSampler` by default; None for a stream.
        total_batch_size: over all processes.
        aspect_ratio_grouping: batches of one orientation; the elements must be dicts with ``width`` and ``height``.
        num_workers: worker processes.
        collate_fn: see :func:`build_batch_data_loader`, which also takes the other keywords.
        **kwargs: see above.
    """
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "a stream has its own order: sampler must be None"
    else:
        sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        assert isinstance(sampler, torchdata.Sampler), f"expected a torch.utils.data.Sampler, got {type(sampler)}"
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: Any, dataset_name: str | Sequence[str], mapper: Callable | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else dataset_name
    proposals = cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposals)
    stream = isinstance(dataset, torchdata.IterableDataset)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if stream else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """Build the loader of a test, every element once; also called as ``(cfg, dataset_name, mapper=None)``.

    Args:
        dataset: list of records, or a torch ``Dataset``.
        mapper: from a record to what the model takes; from a config, ``DatasetMapper(cfg, False)``.
        sampler: of an indexed data set, :class:`InferenceSampler` by default; None for a stream.
        batch_size: per process; 1 is usual where time per image is reported.
        num_workers: worker processes.
        collate_fn: from a list of elements to a batch; the list itself by default.
    """
    mapped = _mapped(dataset, mapper)
    is_stream = isinstance(mapped, torchdata.IterableDataset)
    assert not (is_stream and sampler is not None), "a stream has its own order: sampler must be None"
    order = InferenceSampler(len(mapped)) if sampler is None and not is_stream else sampler
    return torchdata.DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=order,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Give the list of elements back: the model makes its own batch."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy, torch and random of a worker process from the seed that torch has given it."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
