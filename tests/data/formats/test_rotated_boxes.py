"""Rotated boxes become the horizontal boxes around them: in COCO files (HIT-UAV) and roLabelImg's xmls."""

from __future__ import annotations

import json
import math
from pathlib import Path

from d2_ext.cli import convert_dataset
from d2_ext.data.formats import recognize
from d2_ext.data.formats.base import horizontal_box
from d2_ext.data.formats.coco_json import angle_unit
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

import numpy as np
import pytest

from helpers.own_folders import coco_content, images, voc_xml, write_json

ROTATED = [50.0, 40.0, 20.0, 10.0, math.pi / 6]
AROUND = [
    50 - 5 * (math.sqrt(3) + 0.5),
    40 - 2.5 * (2 + math.sqrt(3)),
    5 * (2 * math.sqrt(3) + 1),
    5 * (2 + math.sqrt(3)),
]


def _annotations(folder: Path, split: int = 0) -> list[dict]:
    return [row for record in recognize(folder).splits[split].read(Problems()) for row in record["annotations"]]


def test_the_box_around_is_that_of_the_corners() -> None:
    rng = np.random.default_rng(0)
    for x, y, width, height, angle in rng.uniform([-50, -50, 1, 1, -7], [50, 50, 40, 40, 7], (200, 5)):
        for turn in (angle, -angle):  # clockwise and counter-clockwise tools
            corners = np.array([complex(a * width / 2, b * height / 2) for a in (-1, 1) for b in (-1, 1)])
            corners = corners * np.exp(1j * turn) + complex(x, y)
            low, high = (complex(end(corners.real), end(corners.imag)) for end in (np.min, np.max))
            expected = [low.real, low.imag, (high - low).real, (high - low).imag]
            assert horizontal_box([x, y, width, height, turn]) == pytest.approx(expected, abs=1e-9)
    assert horizontal_box([50, 40, -20, 10, 1])[2:] == [0, 0], "a side below 0 is no box"


@pytest.mark.parametrize(("angle", "unit"), [(math.pi / 6, "radians"), (30.0, "degrees"), (-30, "degrees")])
def test_a_coco_file_with_rotated_boxes_is_read_and_said(tmp_path: Path, angle: float, unit: str) -> None:
    images(tmp_path / "images", "ab")
    content = coco_content("ab", boxes=([*ROTATED[:4], angle], [10.0, 20.0, 30.0, 40.0]))
    content["annotation"] = content.pop("annotations")  # HIT-UAV's name
    write_json(tmp_path / "labels.json", content)
    assert angle_unit(content) == unit
    data = recognize(tmp_path)
    notes = "; ".join(data.notes)
    assert f"2 rotated boxes (center, width, height, angle in {unit}) are read as the horizontal boxes around" in notes
    boxes = [row["bbox"] for row in _annotations(tmp_path)]
    assert boxes[0] == boxes[2] == pytest.approx(AROUND)
    assert boxes[1] == [10.0, 20.0, 30.0, 40.0], "the horizontal ones stay"
    assert data.splits[0].json_file is None, "the file itself cannot be judged by"


def test_splits_in_different_units_are_refused(tmp_path: Path) -> None:
    for split, angle in (("train", 30.0), ("val", 0.5)):
        images(tmp_path / split, "ab")
        write_json(tmp_path / f"{split}.json", coco_content("ab", boxes=([*ROTATED[:4], angle],)))
    with pytest.raises(DatasetError, match=r"train\.json' exceed 2 pi, those in 'val\.json' do not"):
        recognize(tmp_path)


@pytest.mark.parametrize("box", [[1, 2, 3, 4, float("nan")], [1, 2, 3, 4, "x"], [1, 2, 3, 4, 5, 6]])
def test_what_is_no_rotated_box_stays_an_error(tmp_path: Path, box: list) -> None:
    images(tmp_path / "images", "a")
    content = coco_content("a")
    content["annotations"][0] |= {"bbox": box}
    write_json(tmp_path / "labels.json", content)
    with pytest.raises(DatasetError, match="four finite numbers"):
        _annotations(tmp_path)


def _rotated_xml(stem: str, **changes: float | str) -> str:
    values = dict(zip(("cx", "cy", "w", "h", "angle"), ROTATED)) | changes
    box = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    row = f"<object><type>robndbox</type><name>car</name><robndbox>{box}</robndbox></object>"
    return voc_xml(stem, [("dog", [11, 21, 40, 60])]).replace("</annotation>", f"{row}</annotation>")


def test_xmls_with_rotated_and_other_boxes_are_read(tmp_path: Path) -> None:
    images(tmp_path, "a")
    (tmp_path / "a.xml").write_text(_rotated_xml("a"))
    dog, car = _annotations(tmp_path)
    assert dog["bbox"] == [10, 20, 30, 40]
    assert car["bbox"] == pytest.approx(AROUND)
    (tmp_path / "a.xml").write_text(_rotated_xml("a", angle="askew"))
    with pytest.raises(DatasetError, match="<robndbox> of this car .* four numbers in px and an angle in radians"):
        _annotations(tmp_path)


def test_converting_writes_horizontal_boxes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images(tmp_path / "in/images", "ab")
    write_json(tmp_path / "in/labels.json", coco_content("ab", boxes=(ROTATED,)))
    assert convert_dataset.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert "2 rotated boxes" in capsys.readouterr().out
    jsons = [json.loads(path.read_text()) for path in (tmp_path / "out/annotations").glob("*.json")]
    assert len(jsons) == 2, "a part is held out"
    for row in (row for content in jsons for row in content["annotations"]):
        assert row["bbox"] == pytest.approx(AROUND, abs=1e-3)
        assert row["area"] == pytest.approx(AROUND[2] * AROUND[3], rel=1e-3)
