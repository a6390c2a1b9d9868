"""UAVDT's detection part in its official form: sequences of images, and one pair of txt files a sequence.

Below the root::

    UAV-benchmark-M/<sequence>/img000001.jpg ...          images
    UAV-benchmark-MOTD_v1.0/GT/<sequence>_gt_whole.txt    objects (the folder may also lie directly below, as GT/)
    UAV-benchmark-MOTD_v1.0/GT/<sequence>_gt_ignore.txt   regions in which vehicles were not labeled

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
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, log_records, register_records, to_annotation
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError, did_you_mean
from d2_ext.images import read_size

__all__ = ["UAVDT", "UAVDT_CLASSES", "UAVDT_SEQUENCES", "load_uavdt", "register_uavdt"]

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
TRUTH_FOLDERS = ("UAV-benchmark-MOTD_v1.0/GT", "GT")
OBJECTS, REGIONS = "_gt_whole.txt", "_gt_ignore.txt"
LAST_FRAME = 999_999  # images have six digits
LINE_FORMATS = {
    OBJECTS: "frame,target,x,y,w,h,out-of-view,occlusion,category",
    REGIONS: "frame,target,x,y,w,h",
}

_logger = logging.getLogger(__name__)


class UAVDT:
    """The format; see the module."""

    name = "uavdt"
    expected = f"{IMAGE_FOLDER}/ and GT/"

    def look(self, listing: Listing) -> str:
        """Both folders of the official form."""
        truth = _truth_in(listing)
        return f"{IMAGE_FOLDER}/ and {truth}/*{OBJECTS}" if truth and IMAGE_FOLDER in listing.folders else ""

    def open(self, listing: Listing) -> DataFolder:
        """Take the sequences that have images and truth, split as the authors did.

        Raises:
            DatasetError: if no sequence has both.
        """
        truth = _truth_in(listing) or ""
        annotated = {name.removesuffix(OBJECTS) for name in listing.folders[truth] if name.endswith(OBJECTS)}
        with_images = {
            f.split("/")[1] for f in listing.folders if f.startswith(f"{IMAGE_FOLDER}/") and listing.images(f)
        }
        both = annotated & with_images
        if not both:
            raise DatasetError(
                f"'{listing.root}': no sequence has both images in {IMAGE_FOLDER}/ and a txt in {truth}/. Unpack both."
            )

        official = {name: split for split, names in UAVDT_SEQUENCES.items() for name in names}
        sequences: dict[str, list[str]] = {}
        frames = {}
        for name in sorted(both):
            sequences.setdefault(official.get(name, "train"), []).append(name)
            lines = listing.path(truth, f"{name}{OBJECTS}").read_text(errors="replace").splitlines()
            frames[name] = len({line.split(",", 1)[0].strip() for line in lines if line.strip()})
        notes = []
        for what, odd in (
            ("sequences without images", sorted(annotated - both)),
            (f"sequences without {OBJECTS}", sorted(with_images - both)),
            ("not in the official split, so in train", sorted(both - official.keys())),
        ):
            if odd:
                notes.append(f"{what}: {', '.join(odd[:6])}" + (f" and {len(odd) - 6} more" if len(odd) > 6 else ""))
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=UAVDT_CLASSES,
            splits=tuple(
                Split(
                    split,
                    sum(frames[name] for name in names),
                    f"{len(names)} sequences",
                    partial(load_uavdt, listing.root, tuple(names)),
                )
                for split, names in sequences.items()
            ),
            notes=(*notes, "images without any object are left out, as in the published split"),
            metadata=_metadata(listing.root),
            has_ignore_regions=True,
        )


def register_uavdt(name: str, root: str | Path, sequences: Sequence[str]) -> None:
    """Register sequences of UAVDT; they are read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: see the module.
        sequences: their names, e.g. ``UAVDT_SEQUENCES["train"]`` or some of them.

    Raises:
        DatasetError: if the name is taken.
    """
    register_records(name, lambda: load_uavdt(root, sequences), UAVDT_CLASSES, _metadata(Path(root)))


def load_uavdt(root: str | Path, sequences: Sequence[str], problems: Problems | None = None) -> Records:
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
    root, problems = Path(root), problems or Problems()
    truth = next((root / folder for folder in TRUTH_FOLDERS if (root / folder).is_dir()), None)
    if truth is None or not (root / IMAGE_FOLDER).is_dir():
        found = sorted(p.name for p in root.iterdir()) if root.is_dir() else None
        state = "does not exist" if found is None else f"contains {', '.join(found[:8]) or 'nothing'}"
        raise DatasetError(
            f"'{root}' {state}. Expected UAVDT's official form: {IMAGE_FOLDER}/<sequence>/img000001.jpg, and "
            f"{TRUTH_FOLDERS[0]}/ with <sequence>{OBJECTS} and <sequence>{REGIONS}. Unpack the archives there "
            "(not one folder deeper), or set DETECTRON2_DATASETS to its parent."
        )
    records: Records = []
    for sequence in sequences:
        records += _read_sequence(root / IMAGE_FOLDER, truth, sequence, problems)
    for image_id, record in enumerate(records, start=1):
        record["image_id"] = image_id
    log_records(_logger, root, records, problems)
    return records


def _truth_in(listing: Listing) -> str | None:
    return next((f for f in TRUTH_FOLDERS if any(name.endswith(OBJECTS) for name in listing.folders.get(f, ()))), None)


def _metadata(root: Path) -> dict[str, Any]:
    return {
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(UAVDT_CLASSES))},
        "image_root": str(root / IMAGE_FOLDER),
        "evaluator_type": "visdrone",
        "coco_ignore_regions": True,
    }


def _read_sequence(images: Path, truth: Path, sequence: str, problems: Problems) -> Records:
    """Records of one sequence, without ``image_id``."""
    folder = images / sequence
    if not folder.is_dir():
        near = did_you_mean(sequence, [p.name for p in images.iterdir()])
        raise DatasetError(f"No folder '{folder}' for sequence {sequence!r} of UAVDT. {near}".rstrip())
    objects = _read_frames(truth / f"{sequence}{OBJECTS}", LINE_FORMATS[OBJECTS], problems)
    regions = _read_frames(truth / f"{sequence}{REGIONS}", LINE_FORMATS[REGIONS], problems)
    paths = {frame: folder / f"img{frame:06d}.jpg" for frame in sorted(objects)}
    present = {p.name for p in folder.iterdir()}
    missing = [path.name for path in paths.values() if path.name not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(paths)} images that {sequence}{OBJECTS} names are not in '{folder}', first: "
            f"'{missing[0]}'. Unpack {IMAGE_FOLDER} again, or leave the sequence out."
        )
    if not paths:
        return []
    size = read_size(next(iter(paths.values())))  # a video: one size for all its frames
    records = []
    for frame, path in paths.items():
        inside = [item for item in objects[frame] if box_in_image(item[0], size, str(path), problems)]
        ignored = [
            box for box, _ in regions.get(frame, []) if box_in_image(box, size, str(path), problems, "ignore regions")
        ]
        records.append(
            {
                "file_name": str(path),
                "width": size[0],
                "height": size[1],
                "annotations": [to_annotation(box, category - 1) for box, category in inside],
                "ignore_regions": ignored,
            }
        )
    return records


def _read_frames(text: Path, line_format: str, problems: Problems) -> dict[int, list[tuple[list[float], int]]]:
    """Boxes XYWH with their categories (0 where the format has none), by frame."""
    if not text.is_file():
        raise DatasetError(
            f"No file '{text}'. Expected the official annotations of UAVDT, a pair of txt files a sequence. Restore "
            f"it; where nothing is to be ignored, an empty {REGIONS} will do."
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
    has_category = line_format == LINE_FORMATS[OBJECTS]
    try:
        values = [float(field) for field in fields]
    except ValueError:
        problem = "contains something that is not a number"
    else:
        if len(fields) < wanted:
            problem = f"has {len(fields)} fields instead of {wanted}"
        elif not math.isfinite(sum(values)):
            problem = "contains a number that is not finite"
        elif not 1 <= values[0] <= LAST_FRAME or values[0] != int(values[0]):
            problem = f"has frame {values[0]:g}; frames count from 1 to {LAST_FRAME}"
        elif values[4] < 0 or values[5] < 0:
            problem = "has a negative width or height"
        elif has_category and values[8] not in range(1, len(UAVDT_CLASSES) + 1):
            problem = f"has category {values[8]:g}, which is not one of 1 (car), 2 (truck), 3 (bus)"
        else:
            return int(values[0]), values[2:6], int(values[8]) if has_category else 0
    raise DatasetError(
        f"{where}: {line.strip()!r} {problem}. Expected '{line_format}' in px. Correct or delete the line."
    )
