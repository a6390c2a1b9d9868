"""HIT-UAV, thermal images from a drone, read as it is published; its official splits, and splits by days of flight.

The folder is the published ``normal_json``: ``annotations/{train,val,test}.json`` beside ``train/``, ``val/`` and
``test/`` with images of 640 x 512 px. The jsons are nearly COCO's and are repaired in memory (see
:mod:`d2_ext.data.formats.coco`); boxes of the class DontCare become ``record["ignore_regions"]``.

The official splits were drawn image by image from sequences: 181 of the 579 test images have a training image of the
same time, height and camera angle one frame away, 489 have one within five frames. The ``disjoint`` splits give all
images of a day (``date_captured`` in the jsons) to one side, so no flight is on two.

Paper: HIT-UAV: A high-altitude infrared thermal dataset for Unmanned Aerial Vehicle-based object detection, Scientific
Data 10, 227, 2023.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from d2_ext.data.formats.base import Records, register_records
from d2_ext.data.formats.coco import Coco
from d2_ext.data.formats.coco_json import read_json, repair
from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems
from d2_ext.errors import DatasetError

__all__ = ["HIT_UAV_CLASSES", "HIT_UAV_DATES", "HIT_UAV_SPLITS", "load_hit_uav", "register_hit_uav"]

HIT_UAV_CLASSES = ("Person", "Car", "Bicycle", "OtherVehicle")
HIT_UAV_SPLITS = ("train", "val", "test", "disjoint_train", "disjoint_val", "disjoint_test")
# All days of the data. Of the ways to give whole days to three sides so that val and test each show day and night and
# at least 30 objects of every class, this one is nearest to the official shares of images (70, 10 and 20 %). Of two
# that are equally near, it has more daytime images in test.
HIT_UAV_DATES = {
    "train": ("20201217", "20210115", "20210116", "20210120", "20210121"),
    "val": ("20210123",),
    "test": ("20210114", "20210118", "20210119"),
}
_OFFICIAL = ("train", "val", "test")


def register_hit_uav(name: str, root: str | Path, split: str) -> None:
    """Register a split of HIT-UAV; it is read when the data set is first asked for.

    Args:
        name: of the data set in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: the published ``normal_json``, or a folder that holds it.
        split: one of :data:`HIT_UAV_SPLITS`.

    Raises:
        DatasetError: if the name is taken.
    """
    metadata = {
        "thing_dataset_id_to_contiguous_id": {i: i for i in range(len(HIT_UAV_CLASSES))},
        "evaluator_type": "coco",
        "coco_ignore_regions": True,
    }
    register_records(name, lambda: load_hit_uav(root, split), HIT_UAV_CLASSES, metadata)


def load_hit_uav(root: str | Path, split: str, problems: Problems | None = None) -> Records:
    """Read a split of HIT-UAV.

    Args:
        root: the published ``normal_json``, or a folder that holds it.
        split: one of :data:`HIT_UAV_SPLITS`.
        problems: takes what is wrong with annotations; if not given, the first error is raised.

    Returns:
        Detectron2 data set dicts in the order of the jsons (train, val, test), with ``image_id`` as published,
        ``annotations`` (boxes XYWH px, ``category_id`` 0..3) and ``ignore_regions`` (XYWH px).

    Raises:
        DatasetError: for a missing folder, json or image, another set of classes, an unknown split or date, and
            annotations that are wrong.
    """
    if split not in HIT_UAV_SPLITS:
        raise DatasetError(f"HIT-UAV has no split '{split}'. Expected one of {', '.join(HIT_UAV_SPLITS)}.")
    root = Path(root)
    root = root / "normal_json" if (root / "normal_json").is_dir() else root
    paths = {part: root / "annotations" / f"{part}.json" for part in _OFFICIAL}
    absent = [str(path) for path in paths.values() if not path.is_file()]
    if absent:
        raise DatasetError(
            f"No file '{absent[0]}'. Expected HIT-UAV as published: the folder normal_json with annotations/, train/, "
            "val/ and test/. Put it into <datasets>/hit_uav, and set DETECTRON2_DATASETS to <datasets>."
        )
    data = Coco().open(Listing(root))
    if data.classes != HIT_UAV_CLASSES:
        raise DatasetError(
            f"'{root}' has the classes {', '.join(data.classes)}. Expected {', '.join(HIT_UAV_CLASSES)}."
        )

    side = split.removeprefix("disjoint_")
    parts = _OFFICIAL if side != split else (side,)
    records, dates = [], {}
    for part in parts:
        rows = repair(read_json(paths[part]))[0]["images"]
        dates.update({row["id"]: row.get("date_captured") for row in rows})
        found = next(s for s in data.splits if s.name == part).read(problems or Problems())
        if len(found) < len(rows):
            raise DatasetError(
                f"{len(rows) - len(found)} of the {len(rows)} images of '{paths[part]}' are not in '{root / part}'. "
                "Figures on a part of a split are not comparable. Get the whole folder again."
            )
        records += found
    if side == split:
        return records

    side_of_date = {date: name for name, days in HIT_UAV_DATES.items() for date in days}
    strange = Counter(date for date in dates.values() if date not in side_of_date)
    if strange:
        date, count = strange.most_common(1)[0]
        raise DatasetError(
            f"{count} images in '{root / 'annotations'}' have date_captured {date!r}. Expected one of "
            f"{', '.join(sorted(side_of_date))}: the disjoint splits go by the days of the published files."
        )
    return [record for record in records if side_of_date[dates[record["image_id"]]] == side]
