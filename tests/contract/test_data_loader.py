"""Wrappers of data sets and the loaders made of them, on either implementation of Detectron2."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BoxMode
from PIL import Image


def ids(batches: Any, count: int) -> list[list[int]]:
    return [[record["i"] for record in batch] for batch in itertools.islice(iter(batches), count)]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield from range(6)


# -- wrappers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serialize", [True, False])
def test_elements_of_a_wrapped_list_may_be_edited(serialize: bool) -> None:
    wrapped = DatasetFromList([{"a": [1]}, {"a": [2]}], serialize=serialize)
    wrapped[1]["a"].append(3)
    assert wrapped[1] == {"a": [2]}
    assert len(wrapped) == 2


def test_a_list_may_be_handed_out_as_it_is_or_kept_by_a_function() -> None:
    element = {"a": [1]}
    assert DatasetFromList([element], copy=False, serialize=False)[0] is element
    assert DatasetFromList([1, 2, 3], serialize=torch.tensor)[2] == torch.tensor(3)
    with pytest.raises(TypeError):
        DatasetFromList([1], serialize="yes")


def _tens_of_even_ones(x: int) -> int | None:
    return None if x % 2 else x * 10


def test_an_element_that_cannot_be_mapped_is_replaced_always_by_the_same() -> None:
    first, second = (MapDataset(DatasetFromList([*range(10)]), _tens_of_even_ones) for _ in range(2))
    drawn = [first[i] for i in range(10)]
    assert drawn[::2] == [0, 20, 40, 60, 80]
    assert set(drawn[1::2]) <= {0, 20, 40, 60, 80}
    assert [second[i] for i in range(10)] == drawn


def test_a_stream_skips_elements_that_cannot_be_mapped() -> None:
    mapped = MapDataset(Stream(), _tens_of_even_ones)
    assert isinstance(mapped, torch.utils.data.IterableDataset)
    assert list(mapped) == [0, 20, 40]


def test_a_mapped_data_set_with_a_lambda_can_be_pickled() -> None:
    mapped = pickle.loads(pickle.dumps(MapDataset(DatasetFromList([1, 2]), lambda x: x + 1)))
    assert [mapped[0], mapped[1]] == [2, 3]


def test_batches_are_of_one_orientation_and_squares_are_portraits() -> None:
    sizes = [(2, 1), (1, 1), (1, 2), (3, 1), (5, 9), (4, 1)]
    grouped = AspectRatioGroupedDataset([{"width": w, "height": h, "i": i} for i, (w, h) in enumerate(sizes)], 2)
    assert ids(grouped, 9) == [[1, 2], [0, 3]]
    assert ids(grouped, 1) == [[5, 0]]  # 4 and 5 waited, and come first in the next round


def test_workers_take_turns_by_chunks() -> None:
    data = ToIterableDataset(DatasetFromList([*range(12)]), TrainingSampler(12, shuffle=False, seed=0), True, 2)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    assert [b.tolist() for b in itertools.islice(iter(loader), 4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


# -- loaders -----------------------------------------------------------------------------------------------------------


def training_loader(**kwargs: Any) -> Any:
    records = [{"i": i, "width": 2 if i % 3 else 1, "height": 1 if i % 2 else 2} for i in range(12)]
    sampler = TrainingSampler(12, seed=0)
    return build_detection_train_loader(records, mapper=lambda r: r, sampler=sampler, total_batch_size=2, **kwargs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_grouping_the_order_does_not_depend_on_workers(num_workers: int) -> None:
    order = list(itertools.islice(iter(TrainingSampler(12, seed=0)), 16))
    loader = training_loader(aspect_ratio_grouping=False, num_workers=num_workers)
    assert ids(loader, 8) == [order[k : k + 2] for k in range(0, 16, 2)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_with_grouping_images_come_in_the_sampler_order_of_their_group(num_workers: int) -> None:
    order = list(itertools.islice(iter(TrainingSampler(12, seed=0)), 24))
    wide = [i for i in order if i % 3 and i % 2]
    other = [i for i in order if not (i % 3 and i % 2)]
    batches = ids(training_loader(num_workers=num_workers), 8)
    for group in (wide, other):
        seen = [i for batch in batches if batch[0] in group for i in batch]
        assert seen
        assert seen == group[: len(seen)]


def test_a_collate_function_takes_the_list_of_a_batch() -> None:
    for grouping in (True, False):
        loader = training_loader(aspect_ratio_grouping=grouping, collate_fn=len)
        assert list(itertools.islice(iter(loader), 3)) == [2, 2, 2]


@pytest.mark.parametrize(("size", "num_workers"), [(12, 0), (11, 2), (9, 2)])
def test_a_finite_sampler_drops_only_the_incomplete_batch(size: int, num_workers: int) -> None:
    data = DatasetFromList([*range(size)])
    for drop_last, expected in ((True, size // 4), (False, -(-size // 4))):
        sampler = InferenceSampler(size)
        loader = build_batch_data_loader(data, sampler, 4, num_workers=num_workers, drop_last=drop_last)
        batches = list(loader)
        assert len(batches) == len(loader) == expected
        assert sorted(i for batch in batches for i in batch) == list(range(size if not drop_last else size // 4 * 4))


def test_batch_size_of_one_process_excludes_the_total() -> None:
    data, sampler = DatasetFromList([*range(6)]), InferenceSampler(6)
    assert list(build_batch_data_loader(data, sampler, 0, single_gpu_batch_size=3)) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="single_gpu_batch_size"):
        build_batch_data_loader(data, sampler, 2, single_gpu_batch_size=3)
    with pytest.raises(AssertionError):
        build_batch_data_loader(data, sampler, 0)


def test_the_test_loader_gives_each_element_once_in_batches_of_one() -> None:
    loader = build_detection_test_loader([{"i": i} for i in range(5)], mapper=lambda r: r, num_workers=2)
    assert (len(loader), ids(loader, 9)) == (5, [[0], [1], [2], [3], [4]])
    wider = build_detection_test_loader([{"i": i} for i in range(5)], mapper=None, batch_size=3)
    assert ids(wider, 9) == [[0, 1, 2], [3, 4]]


def test_a_stream_takes_no_sampler() -> None:
    with pytest.raises(AssertionError):
        build_detection_train_loader(Stream(), mapper=None, sampler=TrainingSampler(6, seed=0), total_batch_size=1)
    loader = build_detection_train_loader(Stream(), mapper=None, total_batch_size=2, aspect_ratio_grouping=False)
    assert list(loader) == [[0, 1], [2, 3], [4, 5]]


# -- records and the mapper --------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[str]:
    """Four images of 40 x 30: two objects; a crowd only; nothing; an object and a crowd."""

    def annotation(box: list[float], category_id: int = 0, **more: Any) -> dict[str, Any]:
        return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **more}

    pixels = (np.arange(30 * 40 * 3).reshape(30, 40, 3) % 251).astype(np.uint8)
    annos = [
        [annotation([2, 4, 10, 6], 1), annotation([20, 10, 15, 15])],
        [annotation([0, 0, 9, 9], iscrowd=1)],
        [],
        [annotation([5, 5, 5, 5], 1, iscrowd=0), annotation([0, 0, 40, 30], iscrowd=1)],
    ]
    records = []
    for i, per_image in enumerate(annos):
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        records.append({"file_name": str(path), "image_id": i, "height": 30, "width": 40, "annotations": per_image})
    DatasetCatalog.register("contract_loader", lambda: records)
    MetadataCatalog.get("contract_loader").thing_classes = ["ship", "car"]
    yield "contract_loader"
    DatasetCatalog.remove("contract_loader")
    MetadataCatalog.remove("contract_loader")


def toy_cfg(toy: str, **options: Any) -> CfgNode:
    """Batches of one, no workers, no flips; ``options`` are those of ``INPUT``."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = (toy,), 0, 1
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.update(options)
    return cfg


def test_images_without_an_object_are_dropped_for_training_only(toy: str) -> None:
    assert [r["image_id"] for r in get_detection_dataset_dicts(toy)] == [0, 3]
    assert [r["image_id"] for r in get_detection_dataset_dicts([toy], filter_empty=False)] == [0, 1, 2, 3]
    assert len(get_detection_dataset_dicts([toy, toy])) == 4


def test_empty_data_sets_and_classes_beyond_the_names_are_refused(toy: str) -> None:
    records = DatasetCatalog.get(toy)
    records[0]["annotations"][0]["category_id"] = 2
    with pytest.raises(AssertionError, match="category_id"):
        get_detection_dataset_dicts(toy)
    records.clear()
    with pytest.raises(AssertionError, match=toy):
        get_detection_dataset_dicts(toy)


def test_the_mapper_of_training_by_hand(toy: str) -> None:
    record = DatasetCatalog.get(toy)[3]
    mapped = DatasetMapper(toy_cfg(toy, MIN_SIZE_TRAIN=(60,)), True)(record)
    assert (mapped["image"].shape, mapped["image"].dtype) == ((3, 60, 80), torch.uint8)
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (30, 40, 3)
    assert "annotations" not in mapped
    instances = mapped["instances"]
    assert instances.image_size == (60, 80)
    assert instances.gt_classes.tolist() == [1]  # without the crowd
    assert instances.gt_boxes.tensor.tolist() == [[10.0, 10.0, 20.0, 20.0]]
    assert len(record["annotations"]) == 2  # the record itself is untouched


def test_the_mapper_of_tests_keeps_the_size_of_the_file(toy: str) -> None:
    mapped = DatasetMapper(toy_cfg(toy, MIN_SIZE_TEST=15), False)(DatasetCatalog.get(toy)[0])
    assert mapped["image"].shape == (3, 15, 20)
    assert (mapped["height"], mapped["width"]) == (30, 40)
    assert not {"annotations", "instances"} & mapped.keys()


def test_the_channels_of_the_image_follow_the_config(toy: str) -> None:
    record = DatasetCatalog.get(toy)[0]
    bgr, rgb = (
        DatasetMapper(toy_cfg(toy, MIN_SIZE_TEST=0, FORMAT=order), False)(record)["image"] for order in ("BGR", "RGB")
    )
    assert bgr[:, 0, 0].tolist() == [2, 1, 0]
    assert rgb.equal(bgr.flip(0))


def test_objects_that_a_crop_leaves_outside_are_dropped(toy: str) -> None:
    cfg = toy_cfg(toy, MIN_SIZE_TRAIN=(8,))
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [8, 8]
    mapper = DatasetMapper(cfg, True)
    np.random.seed(0)
    for _ in range(20):
        boxes = mapper(DatasetCatalog.get(toy)[0])["instances"].gt_boxes.tensor
        assert bool(((boxes >= 0) & (boxes <= 8)).all())
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_subclasses_override_the_annotations(toy: str) -> None:
    class Counting(DatasetMapper):
        def _transform_annotations(self, dataset_dict: dict, transforms: Any, image_shape: tuple[int, int]) -> None:
            dataset_dict["count"] = len(dataset_dict.pop("annotations"))

    assert Counting(get_cfg(), True)(DatasetCatalog.get(toy)[0])["count"] == 2


def test_loaders_from_a_config(toy: str) -> None:
    cfg = toy_cfg(toy, MIN_SIZE_TRAIN=(30,), MIN_SIZE_TEST=30)
    cfg.SOLVER.IMS_PER_BATCH = 2
    batch = next(iter(build_detection_train_loader(cfg)))
    assert sorted(record["image_id"] for record in batch) == [0, 3]
    assert [record["image_id"] for (record,) in build_detection_test_loader(cfg, toy)] == [0, 1, 2, 3]
    only_ids = build_detection_test_loader(cfg, toy, mapper=lambda record: record["image_id"])
    assert list(only_ids) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "TrainingSampler"])
def test_samplers_by_name(toy: str, sampler: str) -> None:
    cfg = toy_cfg(toy)
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    loader = build_detection_train_loader(cfg, mapper=lambda r: r)
    assert {batch[0]["image_id"] for batch in itertools.islice(iter(loader), 8)} == {0, 3}
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match="NoSuchSampler"):
        build_detection_train_loader(cfg, mapper=lambda r: r)
