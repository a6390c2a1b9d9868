"""Catalogs of data sets and their metadata, on either implementation of Detectron2."""

from __future__ import annotations

import logging
import pickle

import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency


@pytest.fixture
def name() -> str:
    """A name that is free before and after the test."""
    yield "contract_catalog"
    DatasetCatalog.pop("contract_catalog", None)
    MetadataCatalog.pop("contract_catalog", None)


def test_the_loader_runs_at_each_get(name: str) -> None:
    calls: list[int] = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [len(calls)])
    assert calls == []
    assert DatasetCatalog.get(name) == [1]
    assert DatasetCatalog.get(name) == [2]


def test_a_name_is_registered_once_and_can_be_removed(name: str) -> None:
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match=name):
        DatasetCatalog.register(name, list)
    assert name in DatasetCatalog
    assert name in DatasetCatalog.list()
    with pytest.raises(KeyError, match=name):  # names the known ones
        DatasetCatalog.get("no_such_data_set")
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, [{"file_name": "a.png"}])  # no function


def test_metadata_is_one_object_per_name(name: str) -> None:
    meta = MetadataCatalog.get(name)
    assert meta is MetadataCatalog.get(name)
    assert meta.name == name
    assert meta.set(thing_classes=["ship"]) is meta
    assert MetadataCatalog.get(name).thing_classes == ["ship"]
    MetadataCatalog.remove(name)
    assert MetadataCatalog.get(name) is not meta


def test_metadata_is_set_once() -> None:
    meta = Metadata(name="toy", thing_classes=["a"])
    meta.thing_classes = ["a"]  # the same value is no change
    with pytest.raises(AssertionError, match="thing_classes"):
        meta.thing_classes = ["b"]
    with pytest.raises(AssertionError):
        meta.set(thing_classes=["a", "b"])


def test_missing_metadata() -> None:
    meta = Metadata(name="toy", thing_classes=["a"])
    assert not hasattr(meta, "thing_colors")
    assert meta.get("thing_colors") is None
    assert meta.get("thing_colors", 3) == 3
    with pytest.raises(AttributeError, match="thing_classes"):
        _ = meta.thing_colors


def test_as_dict_is_a_copy_and_metadata_survives_pickling() -> None:
    meta = pickle.loads(pickle.dumps(Metadata(name="toy", json_file="a.json")))
    facts = meta.as_dict()
    assert facts == {"name": "toy", "json_file": "a.json"}
    facts["json_file"] = "b.json"
    assert meta.json_file == "a.json"


def test_built_in_names_of_coco() -> None:
    for split in ("train", "val"):
        assert f"coco_2017_{split}" in DatasetCatalog
        assert MetadataCatalog.get(f"coco_2017_{split}").evaluator_type == "coco"
    meta = MetadataCatalog.get("coco_2017_val")
    assert len(meta.thing_classes) == len(meta.thing_colors) == 80
    # Known places in the list, around the gaps in the ids.
    ids = {name: i for i, name in enumerate(meta.thing_classes)}
    assert [ids[n] for n in ("person", "stop sign", "parking meter", "toothbrush")] == [0, 11, 12, 79]
    contiguous = meta.thing_dataset_id_to_contiguous_id
    assert [contiguous[i] for i in (1, 11, 13, 14, 25, 27, 90)] == [0, 10, 11, 12, 23, 24, 79]
    assert sorted(contiguous.values()) == list(range(80))
    assert meta.json_file.endswith("coco/annotations/instances_val2017.json")
    assert meta.image_root.endswith("coco/val2017")
    assert MetadataCatalog.get("coco_2017_test").json_file.endswith("image_info_test2017.json")


def test_inconsistent_metadata_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    MetadataCatalog.get(name).thing_classes = ["ship"]
    check_metadata_consistency("thing_classes", [name, name])
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match="thing_classes"):
        check_metadata_consistency("thing_classes", [name, "coco_2017_val"])
    with pytest.raises(AttributeError):
        check_metadata_consistency("no_such_key", [name])
