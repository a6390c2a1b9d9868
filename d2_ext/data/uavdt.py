"""Reader of UAVDT's detection part in its official form: sequences of images, and one pair of txt files a sequence.

Below the root::

    UAV-benchmark-M/<sequence>/img000001.jpg ...          images
    UAV-benchmark-MOTD_v1.0/GT/<sequence>_gt_whole.txt    objects (the folder may also lie directly below, as GT/)
    UAV-benchmark-MOTD_v1.0/GT/<sequence>_gt_ignore.txt   regions in which vehicles were not labelled

A line of gt_whole is ``frame,target,x,y,w,h,out-of-view,occlusion,category`` in px of the image; frames count from 1,
category 1 is car, 2 truck, 3 bus. Lines of gt_ignore begin with the same six fields; what follows plays no role. The
regions become ``record["ignore_regions"]`` (XYWH): neither objects nor background. Images that gt_whole does not name
are left out, as in the published splits. The split is that of the official attribute files (M_attr/train, M_attr/test):
30 sequences for training, 20 for testing.

Paper: The Unmanned Aerial Vehicle Benchmark: Object Detection and Tracking, ECCV 2018, arXiv:1804.00518.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError, did_you_mean
from d2_ext.images import read_size

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = ["UAVDT_CLASSES", "UAVDT_SEQUENCES", "load_uavdt", "register_uavdt"]

UAVDT_CLASSES = ("car", "truck", "bus")
# fmt: off
UAVDT_SEQUENCES = {
    "train": (
        "M0101", "M0201", "M0202", "M0204", "M0206", "M0207", "M0210", "M0301", "M0401", "M0402", "M0501", "M0603",
        "M0604", "M0605", "M0702", "M0703", "M0704", "M0901", "M0902", "M1002", "M1003", "M1005", "M1006", "M1008",
        "M1102", "M1201", "M1202", "M1304", "M1305", "M1306",
    ),
    "test": (
        "M0203", "M0205", "M0208", "M0209", "M0403", "M0601", "M0602", "M0606", "M0701", "M0801", "M0802", "M1001",
        "M1004", "M1007", "M1009", "M1101", "M1301", "M1302", "M1303", "M1401",
    ),
}
# fmt: on
IMAGE_FOLDER = "UAV-benchmark-M"
LAST_FRAME = 999_999  # images have six digits
TRUTH_FOLDERS = ("UAV-benchmark-MOTD_v1.0/GT", "GT")
OBJECT_FORMAT = "frame,target,x,y,w,h,out-of-view,occlusion,category"
REGION_FORMAT = "frame,target,x,y,w,h"

_logger = logging.getLogger(__name__)


def register_uavdt(name: str, root: str | Path, sequences: Sequence[str]) -> None:
    """Register sequences of UAVDT; they are read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: see the module.
        sequences: their names, e.g. ``UAVDT_SEQUENCES["train"]`` or some of them.

    Raises:
        DatasetError: if the name is taken.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    DatasetCatalog.register(name, lambda: load_uavdt(root, sequences))
    MetadataCatalog.get(name).set(thing_classes=list(UAVDT_CLASSES), **uavdt_metadata(Path(root)))


def uavdt_metadata(root: Path) -> dict[str, Any]:
    """What else ``MetadataCatalog`` knows of a data set in this form."""
    return {
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(UAVDT_CLASSES))},
        "image_root": str(root / IMAGE_FOLDER),
        "evaluator_type": "visdrone",
        "coco_ignore_regions": True,
    }


def load_uavdt(root: str | Path, sequences: Sequence[str], problems: Problems | None = None) -> list[dict[str, Any]]:
    """Read sequences of UAVDT.

    Boxes and regions without area, and those wholly outside the image, are dropped; their number is logged.

    Args:
        root: see the module.
        sequences: names of sequences.
        problems: takes what is wrong with lines; if not given, the first error is raised.

    Returns:
        Detectron2 data set dicts, sequence after sequence, by frame, with ``image_id`` from 1, ``annotations`` (boxes
        XYWH px, ``category_id`` 0..2, ``iscrowd`` 0) and ``ignore_regions``.

    Raises:
        DatasetError: for a missing folder, sequence, image or txt file, and a malformed line; the message names the
            file, and the line.
    """
    root = Path(root)
    truth = _truth_folder(root)
    problems = problems or Problems()
    records: list[dict[str, Any]] = []
    for sequence in sequences:
        records += _read_sequence(root / IMAGE_FOLDER, truth, sequence, problems)
    for image_id, record in enumerate(records, start=1):
        record["image_id"] = image_id
    _log_summary(root, records, problems)
    return records


def _truth_folder(root: Path) -> Path:
    truth = next((root / folder for folder in TRUTH_FOLDERS if (root / folder).is_dir()), None)
    if truth is not None and (root / IMAGE_FOLDER).is_dir():
        return truth
    found = sorted(p.name for p in root.iterdir()) if root.is_dir() else None
    state = "does not exist" if found is None else f"contains {', '.join(found[:8]) or 'nothing'}"
    raise DatasetError(
        f"'{root}' {state}. Expected UAVDT's official form: {IMAGE_FOLDER}/<sequence>/img000001.jpg, and "
        f"{TRUTH_FOLDERS[0]}/ with <sequence>_gt_whole.txt and <sequence>_gt_ignore.txt. Unpack the archives there "
        "(not one folder deeper), or set DETECTRON2_DATASETS to its parent."
    )


def _read_sequence(images: Path, truth: Path, sequence: str, problems: Problems) -> list[dict[str, Any]]:
    """Records of one sequence, without ``image_id``."""
    folder = images / sequence
    if not folder.is_dir():
        near = did_you_mean(sequence, [p.name for p in images.iterdir()])
        raise DatasetError(f"No folder '{folder}' for sequence {sequence!r} of UAVDT. {near}".rstrip())
    objects = _read_lines(truth / f"{sequence}_gt_whole.txt", OBJECT_FORMAT, problems)
    regions = _read_lines(truth / f"{sequence}_gt_ignore.txt", REGION_FORMAT, problems)
    paths = {frame: folder / f"img{frame:06d}.jpg" for frame in sorted(objects)}
    present = {p.name for p in folder.iterdir()}
    missing = [path.name for path in paths.values() if path.name not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(paths)} images that {sequence}_gt_whole.txt names are not in '{folder}', first: "
            f"'{missing[0]}'. Unpack {IMAGE_FOLDER} again, or leave the sequence out."
        )
    if not paths:
        return []
    width, height = read_size(next(iter(paths.values())))  # a video: one size for all its frames
    records = []
    for frame, path in paths.items():
        own_objects = _inside(objects[frame], path, (width, height), "boxes", problems)
        own_regions = _inside(regions.get(frame, []), path, (width, height), "ignore regions", problems)
        records.append(
            {
                "file_name": str(path),
                "width": width,
                "height": height,
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category - 1, "iscrowd": 0}
                    for box, category in own_objects
                ],
                "ignore_regions": [box for box, _ in own_regions],
            }
        )
    return records


def _inside(
    boxes: list[tuple[list[float], int]], path: Path, size: tuple[int, int], what: str, problems: Problems
) -> list[tuple[list[float], int]]:
    """Those with an area in the image; the others are reported."""
    return [item for item in boxes if box_in_image(item[0], size, str(path), problems, what)]


def _read_lines(text: Path, line_format: str, problems: Problems) -> dict[int, list[tuple[list[float], int]]]:
    """Boxes XYWH with their categories (0 where the format has none), by frame."""
    if not text.is_file():
        raise DatasetError(
            f"No file '{text}'. Expected the official annotations of UAVDT, a pair of txt files a sequence. Restore "
            "it; where nothing is to be ignored, an empty _gt_ignore.txt will do."
        )
    frames: dict[int, list[tuple[list[float], int]]] = {}
    for number, line in enumerate(read_lines(text), start=1):
        if line.strip():
            where = f"{text}, line {number}"
            try:
                frame, box, category = _parse_line(line, line_format, where)
            except DatasetError as error:
                problems.refuse("malformed line", where, error)
                continue
            frames.setdefault(frame, []).append((box, category))
    return frames


def _parse_line(line: str, line_format: str, where: str) -> tuple[int, list[float], int]:
    """Frame, box XYWH and category of a line."""
    wanted = line_format.count(",") + 1
    fields = line.strip().removesuffix(",").split(",")[:wanted]
    has_category = line_format == OBJECT_FORMAT
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values, problem = [], "contains something that is not a number"
    else:
        short = len(fields) < wanted
        problem = f"has {len(fields)} fields instead of {wanted}" if short else _problem(values, has_category)
    if problem:
        raise DatasetError(
            f"{where}: {line.strip()!r} {problem}. Expected '{line_format}' in px. Correct or delete the line."
        )
    return int(values[0]), values[2:6], int(values[8]) if has_category else 0


def _problem(values: list[float], has_category: bool) -> str:
    """What is wrong with the numbers of a line; empty if nothing is."""
    if not math.isfinite(sum(values)):
        return "contains a number that is not finite"
    if not 1 <= values[0] <= LAST_FRAME or values[0] != int(values[0]):
        return f"has frame {values[0]:g}; frames count from 1 to {LAST_FRAME}"
    if values[4] < 0 or values[5] < 0:
        return "has a negative width or height"
    if has_category and values[8] not in range(1, len(UAVDT_CLASSES) + 1):
        return f"has category {values[8]:g}, which is not one of 1 (car), 2 (truck), 3 (bus)"
    return ""


def _log_summary(root: Path, records: list[dict[str, Any]], problems: Problems) -> None:
    boxes = sum(len(r["annotations"]) for r in records)
    regions = sum(len(r["ignore_regions"]) for r in records)
    _logger.info("%s: %d images, %d boxes, %d ignore regions", root, len(records), boxes, regions)
    problems.log_dropped(_logger, root)
