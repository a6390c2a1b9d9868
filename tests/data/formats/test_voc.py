"""Pascal VOC's xml: corners from 1, difficult objects, lists, errors with lines."""

from __future__ import annotations

from pathlib import Path

from d2_ext.data.formats import recognize
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import pytest

from helpers.own_folders import BOX, SPLITS, VOC_BOX, image, images, voc_folder, voc_xml


def _one(root: Path, xml: str) -> Path:
    image(root / "a.jpg")
    (root / "a.xml").write_text(xml)
    return root


def test_difficult_objects_count_neither_way(tmp_path: Path) -> None:
    xml = voc_xml("a", [("dog", VOC_BOX)], extra="<difficult>1</difficult>")
    (record,) = recognize(_one(tmp_path, xml)).splits[0].read(Problems())
    assert record["annotations"][0]["iscrowd"] == 1
    assert record["annotations"][0]["bbox"] == BOX


def test_the_size_is_taken_from_the_image_where_the_xml_has_none(tmp_path: Path) -> None:
    xml = voc_xml("a", [("dog", VOC_BOX)]).replace("<width>100</width>", "<width>0</width>")
    (record,) = recognize(_one(tmp_path, xml)).splits[0].read(Problems())
    assert (record["width"], record["height"]) == (100, 80)


def test_folders_of_splits_are_read_without_lists(tmp_path: Path) -> None:
    for split, stems in SPLITS.items():
        images(tmp_path / split, stems)
        for stem in stems:
            (tmp_path / split / f"{stem}.xml").write_text(voc_xml(stem, [("cat", VOC_BOX), ("dog", VOC_BOX)]))
    data = recognize(tmp_path)
    assert data.classes == ("cat", "dog")
    assert {split.name: split.num_images for split in data.splits} == {"train": 3, "val": 1}


def test_images_and_xmls_without_partner_are_counted(tmp_path: Path) -> None:
    voc_folder(tmp_path, SPLITS)
    image(tmp_path / "JPEGImages/lonely.jpg")
    (tmp_path / "Annotations/odd.xml").write_text(voc_xml("odd", []))
    notes = "; ".join(recognize(tmp_path).notes)
    assert "1 xml files have no image and are left out, first: Annotations/odd.xml" in notes
    assert "1 images have no xml and are left out, first: JPEGImages/lonely.jpg" in notes


def test_a_list_that_names_a_missing_xml_gives_its_line(tmp_path: Path) -> None:
    voc_folder(tmp_path, SPLITS)
    (tmp_path / "ImageSets/Main/val.txt").write_text("d\nnone\n")
    with pytest.raises(DatasetError, match=r"val\.txt, line 2: no xml with an image for 'none'"):
        recognize(tmp_path)


def test_a_box_without_corners_names_file_and_line(tmp_path: Path) -> None:
    xml = voc_xml("a", [("dog", VOC_BOX), ("dog", VOC_BOX)])
    first = xml.index("<xmin>", xml.index("<object>", xml.index("</object>")))
    broken = xml[:first] + xml[first:].replace("<xmin>11</xmin>", "<xmin>left</xmin>", 1)
    data = recognize(_one(tmp_path, broken))
    with pytest.raises(DatasetError, match=r"a\.xml, line 7: <bndbox> of this dog is .*'xmin': None"):
        data.splits[0].read(Problems())


def test_broken_xml_names_the_line(tmp_path: Path) -> None:
    voc_folder(tmp_path, SPLITS)
    (tmp_path / "Annotations/a.xml").write_text("<annotation>\n<object>\n</annotation>")
    with pytest.raises(DatasetError, match=r"a\.xml, line 3: not well-formed"):
        recognize(tmp_path).splits[0].read(Problems())


def test_entities_are_refused(tmp_path: Path) -> None:
    xml = '<!DOCTYPE a [<!ENTITY b "boom">]>\n' + voc_xml("a", [("&b;", VOC_BOX)])
    _one(tmp_path, voc_xml("a", [("dog", VOC_BOX)]))
    image(tmp_path / "b.jpg")
    (tmp_path / "b.xml").write_text(xml)
    with pytest.raises(DatasetError, match="b.xml' defines entities"):
        recognize(tmp_path).splits[0].read(Problems())


def test_the_list_of_training_and_validation_is_taken_for_training_where_there_is_no_other(tmp_path: Path) -> None:
    voc_folder(tmp_path, SPLITS)
    lists = tmp_path / "ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    assert {split.name: split.num_images for split in recognize(tmp_path).splits} == {"train": 3, "test": 1}


def test_corners_in_the_wrong_order_are_no_box(tmp_path: Path) -> None:
    xmin, ymin, xmax, ymax = VOC_BOX
    xml = voc_xml("a", [("dog", [xmax, ymin, xmin, ymax]), ("dog", VOC_BOX)])
    problems = Problems(collect=True)
    (record,) = recognize(_one(tmp_path, xml)).splits[0].read(problems)
    assert [annotation["bbox"] for annotation in record["annotations"]] == [BOX]
    assert [problem.kind for problem in problems.found] == ["dropped boxes without area"]


def test_xmls_without_an_object_or_an_image_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="have no <object> with a <name>"):
        recognize(_one(tmp_path, voc_xml("a", [])))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"None of the 1 xml files .* has an image of its name, first: 'a\.xml'"):
        recognize(tmp_path)
