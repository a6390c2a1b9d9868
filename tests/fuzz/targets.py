"""Readers as functions of bytes: each gives a value or one of our errors, whatever the bytes are."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from d2_ext.checkpoint.safe import read_checkpoint
from d2_ext.config.load import _check_yaml
from d2_ext.data import load_uavdt, load_visdrone
from d2_ext.data.formats import recognize
from d2_ext.data.formats.coco_json import check_coco_file
from d2_ext.data.formats.crowdhuman import load_crowdhuman
from d2_ext.data.problems import Problems
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.visualization.mask_ratios import read_mask_ratios

from PIL import Image

OUR_ERRORS = (CheckpointError, ConfigError, DatasetError)
FOLDER = Path(tempfile.mkdtemp(prefix="d2_ext_fuzz_"))
Target = Callable[[bytes], None]


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        Image.new("RGB", (96, 64)).save(path)


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def coco_json(data: bytes) -> None:
    """A json in COCO's format."""
    check_coco_file(_put(FOLDER / "coco.json", data))


def visdrone_text(data: bytes) -> None:
    """The annotations of an image of VisDrone."""
    root = FOLDER / "visdrone"
    _image(root / "images/a.jpg")
    _put(root / "annotations/a.txt", data)
    load_visdrone(root)


def uavdt_text(data: bytes) -> None:
    """The annotations of a sequence of UAVDT."""
    root = FOLDER / "uavdt"
    _image(root / "UAV-benchmark-M/M0101/img000001.jpg")
    _put(root / "GT/M0101_gt_whole.txt", data)
    _put(root / "GT/M0101_gt_ignore.txt", data)
    load_uavdt(root, ["M0101"])


def crowdhuman_lines(data: bytes) -> None:
    """The annotations of CrowdHuman."""
    root = FOLDER / "crowdhuman"
    _image(root / "Images/a.jpg")
    load_crowdhuman(_put(root / "annotation.odgt", data), root / "Images")


def _read_folder(root: Path, data_format: str) -> None:
    """All splits, as a check of the folder reads them and as a training does."""
    for split in recognize(root, data_format).splits:
        split.read(Problems(collect=True))
        split.read(Problems())


def _beside_an_image(root: Path, image: str, file: str, data: bytes, data_format: str) -> None:
    _image(root / image)
    _put(root / file, data)
    _read_folder(root, data_format)


def coco_folder(data: bytes) -> None:
    """A json that may be nearly COCO's, beside its images."""
    _beside_an_image(FOLDER / "coco_folder", "images/a.jpg", "train.json", data, "coco")


def yolo_text(data: bytes) -> None:
    """The labels of an image in a YOLO folder."""
    _beside_an_image(FOLDER / "yolo", "images/a.jpg", "labels/a.txt", data, "yolo")


def yolo_yaml(data: bytes) -> None:
    """The description of a YOLO folder."""
    root = FOLDER / "yolo_yaml"
    _put(root / "labels/a.txt", b"0 0.5 0.5 0.25 0.25")
    _beside_an_image(root, "images/a.jpg", "data.yaml", data, "yolo")


def voc_xml(data: bytes) -> None:
    """The annotations of an image in a folder of Pascal VOC."""
    _beside_an_image(FOLDER / "voc", "JPEGImages/a.jpg", "Annotations/a.xml", data, "voc")


def metrics_lines(data: bytes) -> None:
    """The metrics of a run."""
    read_mask_ratios(_put(FOLDER / "metrics.json", data))


def config_yaml(data: bytes) -> None:
    """A config file, until it is merged."""
    _check_yaml(_put(FOLDER / "recipe.yaml", data), ())


def zoo_pickle(data: bytes) -> None:
    """A checkpoint of the model zoo."""
    read_checkpoint(str(_put(FOLDER / "model.pkl", data)))


def torch_file(data: bytes) -> None:
    """A checkpoint of torch."""
    read_checkpoint(str(_put(FOLDER / "model.pth", data)))


# Target -> beginnings that a fuzzer changes.
TARGETS: dict[str, tuple[Target, tuple[bytes, ...]]] = {
    "coco_json": (
        coco_json,
        (
            b'{"images": [{"id": 1, "file_name": "a.jpg", "width": 96, "height": 64}], "categories": [{"id": 1, '
            b'"name": "car"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2.5, 3, 4e1], '
            b'"area": 12, "iscrowd": 0}]}',
        ),
    ),
    "visdrone_text": (visdrone_text, (b"684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,1,\n",)),
    "uavdt_text": (uavdt_text, (b"1,1,592,40,40,27,1,1,1\n1,2,5,6.5,7,8,0,0,3\n",)),
    "crowdhuman_lines": (
        crowdhuman_lines,
        (b'{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 30, 40], "extra": {"ignore": 0}}]}\n',),
    ),
    "coco_folder": (
        coco_folder,
        (
            b'{"images": [{"id": "1", "file_name": "a.jpg", "width": 96, "height": 64}], "categories": [{"id": 1, '
            b'"name": "car"}, {"id": 2, "name": "ignored regions"}], "annotations": [{"image_id": "1", '
            b'"category_id": 1, "bbox": [1, 2.5, 3, 4e1], "segmentation": [[1, 2, 4, 2, 4, 9]]}]}',
        ),
    ),
    "yolo_text": (yolo_text, (b"0 0.5 0.5 0.25 0.125\n3 0.1 0.1 0.9 0.1 0.5 1.0\n",)),
    "yolo_yaml": (yolo_yaml, (b"path: .\ntrain: images\nval: [images, b]\nnc: 1\nnames: {0: car}\n",)),
    "voc_xml": (
        voc_xml,
        (
            b"<annotation><size><width>96</width><height>64</height></size><object><name>car</name><difficult>0"
            b"</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>4e1</ymax></bndbox></object>"
            b"</annotation>",
        ),
    ),
    "metrics_lines": (
        metrics_lines,
        (b'{"iteration": 19, "mask_ratio/cls": 0.25, "mask_ratio/p3_reg": 0.5, "total_loss": 1.5}\n',),
    ),
    "config_yaml": (config_yaml, (b"_BASE_: a.yaml\nVERSION: 2\nMODEL: {DEVICE: cpu, PIXEL_MEAN: [1.0, 2, 3]}\n",)),
    "zoo_pickle": (zoo_pickle, (b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01}q\x02s.",)),
}


KEPT = Path(__file__).with_name("corpus.json")


def corpus(name: str) -> list[bytes]:
    """What a target begins with: its seeds, and what earlier fuzzing found to take other branches."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    return [*TARGETS[name][1], *(text.encode("latin-1") for text in kept.get(name, ()))]


def run(target: Target, data: bytes) -> None:
    """Call a target; anything but a value or one of our errors is raised."""
    with contextlib.suppress(*OUR_ERRORS):
        target(data)
