"""What a YOLO model gets of a data set, and how its boxes are judged; a script stands in for the command ``yolo``."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from d2_ext.data.formats.base import register_records

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from helpers.scripts import load_script

benchmark = load_script("benchmarks/peers_accuracy.py")

# A command that "trains" nothing and whose boxes are the labels that it was given, in its own format.
YOLO = (
    f"#!{sys.executable}"
    + """
import json, pathlib, re, sys
options = dict(word.split("=", 1) for word in sys.argv[3:])
folder = pathlib.Path(options["project"]) / options["name"]
(folder / "weights").mkdir(parents=True, exist_ok=True)
(folder / "weights/last.pt").write_text("")
if sys.argv[2] == "val":
    text = pathlib.Path(options["data"]).read_text()
    root = pathlib.Path(re.search("path: (.*)", text)[1])
    rows = []
    for path in sorted((root / "labels/test").glob("*.txt")):
        for line in path.read_text().splitlines():
            kind, x, y, w, h = (float(v) for v in line.split())
            box = [(x - w / 2) * 80, (y - h / 2) * 60, w * 80, h * 60]
            rows.append({"image_id": path.stem, "category_id": int(kind) + 1, "bbox": box, "score": 0.9})
    (folder / "predictions.json").write_text(json.dumps(rows))
"""
)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Two images of 80x60 px with two boxes of two classes; their ids and file names differ from their order."""
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "7.png")
    boxes = [[[4, 8, 20, 12], [40, 10, 16, 30]], [[30, 20, 10, 10], [0, 0, 80, 60]]]
    records = [
        {
            "file_name": str(tmp_path / "7.png"),
            "image_id": 40 + i,
            "height": 60,
            "width": 80,
            "annotations": [
                {"bbox": box, "bbox_mode": 1, "category_id": k, "iscrowd": 0} for k, box in enumerate(boxes[i])
            ],
        }
        for i in range(2)
    ]
    records[0]["annotations"].append({"bbox": [62, 40, 10, 10], "bbox_mode": 1, "category_id": 0, "iscrowd": 1})
    metadata = {"thing_dataset_id_to_contiguous_id": {0: 0, 1: 1}, "evaluator_type": "coco"}
    register_records("peers_accuracy_set", lambda: records, ("a", "b"), metadata)
    yield "peers_accuracy_set"
    DatasetCatalog.remove("peers_accuracy_set")
    MetadataCatalog.remove("peers_accuracy_set")


def _run(tmp_path: Path, dataset: str, script: str, *further: str) -> int:
    command = tmp_path / "yolo"
    command.write_text(script)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    words = ["yolo26n", "--yolo-command", str(command), "--minutes", "1", "--folder", str(tmp_path / "out")]
    sets = ["--train", dataset, "--val", dataset, "--test", dataset]
    return benchmark.main([*words, *sets, "--json", str(tmp_path / "result.json"), *further])


def test_boxes_of_the_labels_are_judged_as_perfect(tmp_path: Path, dataset: str) -> None:
    record = tmp_path / "ours.json"
    figures = {"AP": 20.0, "AP50": 45.5, "APs": 1.0, "AP50 a": 40.0, "AP50 b": 51.0, "AP a": 3.0}
    content = {"model": "FCOS", "minutes": 43.4, "data": "some_test, 2 images", "recipe": "configs/some.yaml"}
    record.write_text(json.dumps({**content, "metrics": figures}))
    assert _run(tmp_path, dataset, YOLO, "--beside", str(record)) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["training"] for row in rows] == ["yolo26n, seed 1, 1 minutes", "FCOS, 43 minutes"]
    assert [row["data"] for row in rows] == [dataset, "some_test"]
    assert rows[0]["AP"] == rows[0]["AP50"] == pytest.approx(100)
    assert rows[0]["AP50_by_class"] == pytest.approx({"a": 100, "b": 100})
    assert (rows[1]["AP"], rows[1]["AP50"], rows[1]["AP50_by_class"]) == (20, 45.5, {"a": 40, "b": 51})


def test_training_sees_the_parts_that_show_an_object(tmp_path: Path, dataset: str) -> None:
    assert _run(tmp_path, dataset, YOLO, "--tile", "40") == 0
    assert (json.loads((tmp_path / "result.json").read_text())["rows"][0])["AP"] == pytest.approx(100)  # whole images
    folder = tmp_path / "out" / dataset
    sizes = {Image.open(path).size for path in (folder / "images/train").iterdir()}
    assert sizes == {(40, 40)}
    boxes = [[float(v) for v in p.read_text().split()] for p in sorted((folder / "labels/train").iterdir())]
    # Parts begin at 0, 20 and 40 px of a row, and at 0 and 20 of a column. The first one shows the box [4, 8, 20, 12].
    assert boxes[0] == pytest.approx([0, 14 / 40, 14 / 40, 20 / 40, 12 / 40])
    whole = [p.read_text().count("\n") for p in sorted((folder / "labels/test").iterdir())]
    assert whole == [2, 2]  # a crowd is no label
    assert all(0 <= v <= 1 for box in boxes for v in box)


def test_a_command_that_fails_is_named(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, dataset, "#!/bin/sh\nexit 3\n") == 2
    assert "yolo26n_train.log" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
