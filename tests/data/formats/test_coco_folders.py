"""COCO jsons as people have them: nearly right, in several places, for several splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.data.formats import recognize
from d2_ext.data.formats.coco_json import repair
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest

from helpers.own_folders import BOX, SPLITS, coco_content, coco_folder, images, write_json


def _folder(root: Path, content: Any, stems: str = "ab") -> Path:
    images(root / "images", stems)
    write_json(root / "labels.json", content)
    return root


def test_a_correct_json_is_left_as_it_is_and_judged_by_itself(tmp_path: Path) -> None:
    content = coco_content("ab")
    assert repair(content) == (content, [])
    (split,) = recognize(_folder(tmp_path, content)).splits
    assert split.name == "all"
    assert split.json_file == str(tmp_path / "labels.json")
    assert split.num_boxes == 2


def test_names_of_hit_uav_are_repaired_and_dont_care_is_ignored(tmp_path: Path) -> None:
    content = coco_content("ab")
    content["annotation"] = content.pop("annotations")
    content["annotation"][0]["category_id"] = 1
    for image in content["images"]:
        image["filename"] = image.pop("file_name")
    for row in content["annotation"]:
        del row["iscrowd"], row["area"], row["id"]
    content["categories"][0]["name"] = "DontCare"
    data = recognize(_folder(tmp_path, content))
    assert data.classes == ("dog",)
    assert data.metadata["coco_ignore_regions"] is True
    first, second = data.splits[0].read(Problems())
    assert first["annotations"] == []
    assert first["ignore_regions"] == [BOX]
    assert second["annotations"][0]["category_id"] == 0
    assert data.splits[0].json_file is None, "the file itself cannot be judged by"
    notes = "; ".join(data.notes)
    for text in ("'annotation' is read as 'annotations'", "from 'filename'", "without 'area'", "class 'DontCare'"):
        assert text in notes


def test_missing_images_are_left_out_and_counted(tmp_path: Path) -> None:
    data = recognize(_folder(tmp_path, coco_content("abc")))
    assert "1 of its 3 images are not in 'images' and are left out, first: 'c.jpg'" in "; ".join(data.notes)
    assert len(data.splits[0].read(Problems())) == data.splits[0].num_images == 2
    with pytest.raises(DatasetError, match="none of its images"):
        recognize(_folder(tmp_path / "other", coco_content("xy")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "annotation 1: has image_id 9"),
        ({"category_id": 9}, "annotation 1: has category_id 9"),
        ({"bbox": [1, 2, 3]}, r"annotation 1: has bbox \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 1: has bbox"),
    ],
)
def test_a_broken_annotation_names_file_and_entry(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = coco_content("ab")
    content["annotations"][0] |= change
    data = recognize(_folder(tmp_path, content))
    with pytest.raises(DatasetError, match=rf"labels\.json': {message}"):
        data.splits[0].read(Problems())


def test_boxes_without_area_or_outside_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [BOX, [5, 5, 0, 3], [100, 0, 5, 5]]
    problems = Problems()
    (record,) = recognize(_folder(tmp_path, coco_content("a", boxes=boxes), "a")).splits[0].read(problems)
    assert [a["bbox"] for a in record["annotations"]] == [BOX]
    assert "dropped 1 boxes without area, first: " in caplog.text
    assert "annotation 3" in caplog.text


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    images(tmp_path, "a")
    (tmp_path / "x.json").write_text('{"images": [\n {"id": 1,,}]}')
    with pytest.raises(DatasetError, match=r"x\.json' is not valid json: .*line 2 column"):
        recognize(tmp_path)


def test_splits_must_agree_on_the_classes(tmp_path: Path) -> None:
    coco_folder(tmp_path, SPLITS)
    content = coco_content("d")
    content["categories"][0]["name"] = "horse"
    write_json(tmp_path / "annotations/instances_val2017.json", content)
    with pytest.raises(
        DatasetError, match=r"instances_train2017.json' and .*instances_val2017.json'.*'horse' with id 1"
    ):
        recognize(tmp_path)


def test_of_cocos_own_files_the_instances_are_used_and_the_rest_is_named(tmp_path: Path) -> None:
    coco_folder(tmp_path, SPLITS)
    write_json(tmp_path / "annotations/captions_val2017.json", {"images": [], "annotations": []})
    data = recognize(tmp_path)
    assert any("captions_val2017.json: not used" in note for note in data.notes)
    write_json(tmp_path / "annotations/instances_val_new.json", coco_content("d"))
    with pytest.raises(DatasetError, match="several jsons for the split 'val'"):
        recognize(tmp_path)


def test_equal_names_in_train_and_val_are_told_apart(tmp_path: Path) -> None:
    coco_folder(tmp_path, {"train": ["a", "b"], "val": ["a", "b"]})
    for split in recognize(tmp_path).splits:
        assert f"{split.name}2017" in split.read(Problems())[0]["file_name"]


def test_polygons_and_crowds_are_kept(tmp_path: Path) -> None:
    content = coco_content("a")
    content["annotations"][0] |= {"segmentation": [[10, 20, 40, 20, 40, 60], [1, 2]], "iscrowd": 1}
    (record,) = recognize(_folder(tmp_path, content, "a")).splits[0].read(Problems())
    assert record["annotations"][0]["segmentation"] == [[10, 20, 40, 20, 40, 60]]
    assert record["annotations"][0]["iscrowd"] == 1
