"""COCO: folders with jsons in the instances format, one for each split, correct or nearly so (HIT-UAV)."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import DataFolder, Records, Split, log_records, split_of, to_annotation
from d2_ext.data.formats.coco_json import (
    angle_unit,
    check_annotation,
    check_coco_file,
    check_lists,
    ignore_categories,
    read_json,
    repair,
)
from d2_ext.data.formats.listing import Listing
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["Coco", "register_coco_folder"]

_HEAD = 65536  # bytes of a json that are looked at
_KEYS = re.compile(rb'"(images|annotations?|categories)"\s*:\s*\[')
_SAMPLE = 200  # images looked up in every folder, to find where they are

_logger = logging.getLogger(__name__)


class Coco:
    """The format; see the module."""

    name = "coco"
    expected = "a json with images, annotations and categories"

    def look(self, listing: Listing) -> str:
        """Jsons with the keys of the format."""
        found = list(_jsons(listing))
        return f"{', '.join(found[:4])}: json with lists of images, annotations or categories" if found else ""

    def open(self, listing: Listing) -> DataFolder:
        """Read the jsons and find their images.

        Raises:
            DatasetError: for a json that cannot be read, several for one split, different categories or units of angles
                in two of them, and images that are nowhere.
        """
        files, notes = _split_files(listing)
        splits: list[Split] = []
        categories: dict[str, list[tuple[Any, str]]] = {}
        ignored: dict[Any, str] = {}
        files_of_unit: dict[str, str] = {}
        for name, file in files.items():
            content = read_json(listing.root / file)
            files_of_unit[angle_unit(content)] = file
            content, done = repair(content)
            notes += [f"{file}: {text}" for text in done]
            if not content.get("annotations"):
                notes.append(f"{file}: has no annotations and is not used")
                continue
            check_lists(listing.root / file, content)
            categories[file] = _categories(content)
            ignored = ignore_categories(content)
            splits.append(_make_split(listing, name, file, content, notes, whole=not done and not ignored))
        if files_of_unit.keys() >= {"radians", "degrees"}:
            raise DatasetError(
                f"The angles of the boxes in '{listing.root / files_of_unit['degrees']}' exceed 2 pi, those in "
                f"'{files_of_unit['radians']}' do not. Expected one unit, radians or degrees. Write all in radians."
            )
        if not splits:
            raise DatasetError(f"No json in '{listing.root}' has annotations ({', '.join(files.values())}). Add them.")

        (first, classes), *others = categories.items()
        for file, found in others:
            if found != classes:
                odd = next(pair for pair in [*found, *classes] if pair not in found or pair not in classes)
                raise DatasetError(
                    f"'{listing.root / first}' and '{listing.root / file}' have different categories, for instance "
                    f"{odd[1]!r} with id {odd[0]!r}. Expected the same ids and names in all splits. Correct one of "
                    "them."
                )
        notes += [f"class '{name}' marks regions to be ignored; it is not learned" for name in ignored.values()]
        crowds = any(split.json_file is None for split in splits) and bool(ignored)
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=tuple(name for key, name in classes if key not in ignored),
            splits=tuple(splits),
            notes=tuple(notes),
            metadata={
                "evaluator_type": "coco",
                "thing_dataset_id_to_contiguous_id": _contiguous(classes, ignored),
                **({"coco_ignore_regions": True} if crowds else {}),
            },
            has_ignore_regions=bool(ignored),
            has_masks=True,
        )


def _jsons(listing: Listing) -> Iterable[str]:
    for folder, name in listing.files((".json",)):
        with open(listing.path(folder, name), "rb") as file:
            head = file.read(_HEAD)
            # A small json with categories alone is Label Studio's notes.json beside YOLO labels.
            keys = {match[1] for match in _KEYS.finditer(head)} - ({b"categories"} if len(head) < _HEAD else set())
            if keys:
                yield f"{folder}/{name}" if folder else name


def _categories(content: dict[str, Any]) -> list[tuple[Any, str]]:
    """Ids and names, by id."""
    return sorted(((row["id"], str(row["name"])) for row in content["categories"]), key=lambda pair: pair[0])


def register_coco_folder(
    name: str,
    folder: str | Path,
    *,
    json_file: str | Path | None = None,
    image_dir: str | Path | None = None,
) -> None:
    """Register a folder with images and one json file in COCO's instances format.

    The json is looked for in ``folder/annotations`` and ``folder``; images in ``folder/images``, ``folder`` and the
    folders inside these. Afterwards ``name`` can stand in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Args:
        name: of the data set.
        folder: holds the images and the json.
        json_file: which json, if there are several; relative to ``folder`` or absolute.
        image_dir: where the images are, if they are not found; relative to ``folder`` or absolute.

    Raises:
        DatasetError: if the name is taken, if the folder, the json or images are missing, if there are several
            jsons, and if the json lacks something that training or evaluation needs.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"A data set '{name}' is already registered. Choose another name.")
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"No folder '{folder}'. Expected a folder with images and a COCO json.")
    json_path = _find_json(folder, json_file)
    content = check_coco_file(json_path)
    image_root = _find_images(folder, image_dir, [image["file_name"] for image in content["images"]])
    categories = _categories(content)
    metadata = {
        "thing_classes": [name for _, name in categories],
        "thing_dataset_id_to_contiguous_id": _contiguous(categories, ()),
    }
    register_coco_instances(name, metadata, str(json_path), str(image_root))
    counts = [len(content[key]) for key in ("images", "annotations", "categories")]
    _logger.info("Registered '%s': %d images, %d annotations, %d classes (%s)", name, *counts, json_path)


def _split_files(listing: Listing) -> tuple[dict[str, str], list[str]]:
    """Split -> json, and what was not used."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in _jsons(listing):
        path = PurePosixPath(file)
        found[split_of(path.stem) or split_of(path.parent.name) or "all"].append(file)
    chosen, notes = {}, []
    for split, files in found.items():
        instances = [file for file in files if "instances" in PurePosixPath(file).name] if len(files) > 1 else files
        if len(instances) != 1:
            raise DatasetError(
                f"'{listing.root}' holds several jsons for the split '{split}': {', '.join(files[:8])}. Expected one. "
                "Move the others away, or register the one with d2_ext.data.register_coco_folder(json_file=...)."
            )
        chosen[split] = instances[0]
        notes += [f"{file}: not used, {instances[0]} holds the boxes" for file in files if file != instances[0]]
    if "all" in chosen and len(chosen) > 1:
        notes.append(f"{chosen.pop('all')}: not used, its name tells no split")
    return chosen, notes


def _contiguous(categories: list[tuple[Any, str]], ignored: Iterable[Any]) -> dict[Any, int]:
    return {key: i for i, key in enumerate(key for key, _ in categories if key not in set(ignored))}


def _make_split(
    listing: Listing, name: str, file: str, content: dict[str, Any], notes: list[str], *, whole: bool
) -> Split:
    """A split, with notes on images that the json lists and the folder has not."""
    # The images are in the folder that, with the json's file names, has most of them.
    step = max(1, len(content["images"]) // _SAMPLE)
    sample = [str(row["file_name"]) for row in content["images"][::step]]
    counts = {folder: sum(_has(listing, folder, image) for image in sample) for folder in listing.folders}
    best = max(counts.values())
    if not best:
        raise DatasetError(
            f"'{listing.root / file}': none of its images ('{sample[0]}', ...) is in '{listing.root}' or a folder "
            "below. Expected images beside the json, in images/ or in a folder of their own. Put them there."
        )
    good = [folder for folder, count in counts.items() if count == best]
    # Equal folders (the same names in train/ and val/): the one named after the split, then the one beside the json.
    folder = min(good, key=lambda f: (split_of(f) != name, f != Listing.parent(file), len(f)))

    missing = [row["file_name"] for row in content["images"] if not _has(listing, folder, row["file_name"])]
    if missing:
        notes.append(
            f"{file}: {len(missing)} of its {len(content['images'])} images are not in '{folder or '.'}' and are "
            f"left out, first: '{missing[0]}'"
        )
    own = len(listing.images(folder)) + len(missing) - len(content["images"])
    if own > 0 and all("/" not in str(row["file_name"]) for row in content["images"]):
        notes.append(f"{file}: {own} images in '{folder or '.'}' are not in it")
    skipped = set(missing)
    present = {row["id"] for row in content["images"] if row["file_name"] not in skipped}
    rows = [row for row in content["annotations"] if row["category_id"] not in ignore_categories(content)]
    return Split(
        name=name,
        num_images=len(present),
        num_boxes=sum(row["image_id"] in present for row in rows),
        source=f"{file}, images in {folder or '.'}",
        read=partial(_read, listing, file, folder, frozenset(skipped)),
        json_file=str(listing.root / file) if whole and not missing else None,
    )


def _has(listing: Listing, folder: str, file_name: str) -> bool:
    path = PurePosixPath(folder, str(file_name))
    parent = "" if str(path.parent) == "." else str(path.parent)
    names = listing.name_sets.get(parent)
    return names is not None and path.name in names


def _read(listing: Listing, file: str, folder: str, skipped: frozenset[str], problems: Problems) -> Records:
    """Detectron2's data set dicts, by the json's order of images."""
    path = listing.root / file
    content, _ = repair(read_json(path))
    check_lists(path, content)
    ignored = ignore_categories(content)
    categories = _categories(content)
    contiguous = _contiguous(categories, ignored)
    records = {
        row["id"]: {
            "file_name": str(listing.root / folder / row["file_name"]),
            "image_id": row["id"],
            "width": row["width"],
            "height": row["height"],
            "annotations": [],
            **({"ignore_regions": []} if ignored else {}),
        }
        for row in content["images"]
    }
    known = {key for key, _ in categories}
    for row in content["annotations"]:
        where = f"'{path}': annotation {row.get('id') if isinstance(row, dict) else row!r}"
        kind, text = check_annotation(row, records, known)
        if text:
            problems.error(kind, where, text)
            continue
        record = records[row["image_id"]]
        if not box_in_image(row["bbox"], (record["width"], record["height"]), where, problems):
            continue
        if row["category_id"] in ignored:
            record["ignore_regions"].append(row["bbox"])
            continue
        annotation = to_annotation(row["bbox"], contiguous[row["category_id"]], crowd=bool(row["iscrowd"]))
        shape = row.get("segmentation")
        if isinstance(shape, list):  # polygons; with less than three points they have no area
            shape = [polygon for polygon in shape if len(polygon) >= 6 and len(polygon) % 2 == 0]
        elif isinstance(shape, dict) and isinstance(shape.get("counts"), list):
            shape = mask_util.frPyObjects(shape, *shape["size"])
        if shape:
            annotation["segmentation"] = shape
        record["annotations"].append(annotation)
    for row in content["images"]:
        if row["file_name"] in skipped:
            problems.dropped("missing images", str(path), str(row["file_name"]))
    kept = [records[row["id"]] for row in content["images"] if row["file_name"] not in skipped]
    log_records(_logger, path, kept, problems)
    return kept


def _find_json(folder: Path, json_file: str | Path | None) -> Path:
    if json_file is not None:
        path = folder / json_file
        if not path.is_file():
            raise DatasetError(f"No file '{path}'. Expected a COCO json. Correct json_file.")
        return path
    looked_in = [folder / "annotations", folder]
    for place in looked_in:
        found = sorted(place.glob("*.json"))
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:8])
            raise DatasetError(
                f"'{place}' holds {len(found)} json files: {names}. Name the one to use with json_file=..."
            )
        if found:
            return found[0]
    raise DatasetError(
        f"No json in {' or '.join(repr(str(p)) for p in looked_in)}. Expected one file in COCO's instances format. "
        "Put it there, or name it with json_file=..."
    )


def _find_images(folder: Path, image_dir: str | Path | None, names: Sequence[str]) -> Path:
    """The first place that holds the first image; all others must be there too."""
    if image_dir is not None:
        places = [folder / image_dir]
    else:
        bases = [folder / "images", folder]
        inside = [p for base in bases if base.is_dir() for p in sorted(base.iterdir()) if p.is_dir()]
        places = [*bases, *inside]
    root = next((place for place in places if os.path.isfile(place / names[0])), None)
    if root is None:
        looked = ", ".join(f"'{place}'" for place in places[:8])
        raise DatasetError(
            f"Image '{names[0]}', the first of the json, was not found in {looked}. Expected all images in one of "
            "them. Name their folder with image_dir=..."
        )
    missing = [name for name in names if not os.path.isfile(root / name)]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} images of the json are not in '{root}', first: '{missing[0]}'. "
            "Add them, or take their entries out of the json."
        )
    return root
