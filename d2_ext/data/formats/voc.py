"""Pascal VOC: an xml an image, with corners in whole px counted from 1.

As in Detectron2's own reader, 1 is subtracted from ``xmin`` and ``ymin`` only: the last pixel of a box belongs to it.
Objects marked ``difficult`` become crowd boxes of their class, which count neither way in training and evaluation.
The rotated boxes of roLabelImg (``robndbox``: center and sides in px, angle in radians) become the horizontal boxes
around them.
"""

from __future__ import annotations

import logging
import math
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from d2_ext.data.formats.base import (
    DataFolder,
    Records,
    Split,
    horizontal_box,
    is_ignore_class,
    log_records,
    split_of,
    to_annotation,
)
from d2_ext.data.formats.listing import Listing
from d2_ext.data.parsing import read_lines
from d2_ext.data.problems import Problems, box_in_image
from d2_ext.errors import DatasetError
from d2_ext.images import IMAGE_SUFFIXES, read_size

__all__ = ["VOC"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED = ("cx", "cy", "w", "h", "angle")
_SIDE = re.compile("[1-9][0-9]{0,8}")  # px
_SUFFIXES = tuple(case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper()))
_HEAD = 2048  # characters of an xml that are looked at

_logger = logging.getLogger(__name__)

Item = tuple[Path, str]  # an xml, and the folder of its image with the name: "JPEGImages/000001.jpg"


class VOC:
    """The format; see the module."""

    name = "voc"
    expected = "Annotations/*.xml"

    def look(self, listing: Listing) -> str:
        """The first xml of a folder that holds ``<annotation``."""
        for folder, names in listing.folders.items():
            first = next((name for name in names if name.endswith(".xml")), None)
            if first is not None:
                text = listing.path(folder, first).read_text(encoding="utf-8", errors="replace")
                if "<annotation" in text[:_HEAD]:
                    return f"{folder}/{first}: xml with <annotation>" if folder else f"{first}: xml with <annotation>"
        return ""

    def open(self, listing: Listing) -> DataFolder:
        """Pair xmls with images, find the splits (ImageSets/Main or folders) and the classes.

        Raises:
            DatasetError: for xmls without images, a list that names a missing xml, and an xml that cannot be read.
        """
        items, notes = _pair(listing)
        splits = _by_image_sets(listing, items)
        if not splits:  # then by the names of the folders of xmls and images
            splits = defaultdict(list)
            for key, (_, image) in items.items():
                words = [split_of(part) for part in (*key.split("/")[:-1], *image.split("/")[:-1])]
                splits[next((word for word in words if word), "all")].append(key)
            if "trainval" in splits:
                splits["train"] += splits.pop("trainval")
        used = {xml for found in splits.values() for xml in found}
        if len(used) < len(items):
            notes.append(f"{len(items) - len(used)} annotated images belong to no split and are not used")
        names = set()
        for xml, _ in (items[key] for key in used):
            try:
                names |= {(node.text or "").strip() for node in _parse(xml).iterfind("object/name")} - {""}
            except DatasetError:  # reading the images reports it, with all others
                continue
        ignored = {name for name in names if is_ignore_class(name)}
        notes += [f"class '{name}' marks regions to be ignored; it is not learned" for name in sorted(ignored)]
        classes = tuple(sorted(names - ignored))
        if not classes:
            raise DatasetError(f"The xml files in '{listing.root}' have no <object> with a <name>. Expected some.")
        contiguous = {name: i for i, name in enumerate(classes)}
        return DataFolder(
            root=listing.root,
            format=self.name,
            classes=classes,
            splits=tuple(
                Split(
                    name,
                    len(found),
                    f"{len(found)} xml files",
                    partial(_read, listing, [items[xml] for xml in found], contiguous, frozenset(ignored)),
                )
                for name, found in splits.items()
            ),
            notes=tuple(notes),
            metadata={"evaluator_type": "coco", **({"coco_ignore_regions": True} if ignored else {})},
            has_ignore_regions=bool(ignored),
        )


def _pair(listing: Listing) -> tuple[dict[str, Item], list[str]]:
    """Key ("train/000001", or the stem alone under Annotations/) -> item; and what has no partner."""
    items: dict[str, Item] = {}
    lonely: list[str] = []
    paired: set[str] = set()
    for folder, name in listing.files((".xml",)):
        stem = name[:-4]
        # Folders where the images of a folder of xmls may be, the likely ones first.
        above, own = listing.parent(folder), PurePosixPath(folder).name
        swaps = [re.sub(r"(?i)annotations?|labels|xmls?", word, folder) for word in ("JPEGImages", "images", "Images")]
        near = [f"{above}/{word}" if above else word for word in ("JPEGImages", "images", "Images", "img", own)]
        places = [place for place in dict.fromkeys([folder, *swaps, *near, above]) if place in listing.folders]
        names = ((place, f"{stem}{suffix}") for place in places for suffix in _SUFFIXES)
        image = next((f"{p}/{n}" if p else n for p, n in names if n in listing.name_sets[p]), None)
        if image is None:
            lonely.append(f"{folder}/{name}" if folder else name)
            continue
        paired.add(image)
        items[f"{folder}/{stem}"] = (listing.path(folder, name), image)
    if not items:
        raise DatasetError(
            f"None of the {len(lonely)} xml files in '{listing.root}' has an image of its name, first: '{lonely[0]}'. "
            "Expected them beside the xml, or in JPEGImages/ beside Annotations/."
        )
    images = {f"{f}/{n}" if f else n for f in listing.folders for n in listing.images(f)}
    notes = [f"{len(lonely)} xml files have no image and are left out, first: {lonely[0]}"] if lonely else []
    odd = sorted(p for p in images - paired if "Segmentation" not in p)
    return items, notes + ([f"{len(odd)} images have no xml and are left out, first: {odd[0]}"] if odd else [])


def _by_image_sets(listing: Listing, items: dict[str, Item]) -> dict[str, list[str]]:
    """Split -> keys, from the lists in ImageSets/Main; empty if there are none."""
    splits: dict[str, list[str]] = {}
    for folder in (f for f in listing.folders if f.endswith("ImageSets/Main")):
        base = listing.parent(listing.parent(folder))
        prefix = f"{base}/Annotations" if base else "Annotations"
        for name in listing.folders[folder]:
            split = split_of(name[:-4]) if name in ("train.txt", "val.txt", "test.txt", "trainval.txt") else None
            path = listing.path(folder, name)
            for number, line in enumerate(read_lines(path) if split else (), start=1):
                word = line.split()[0] if line.strip() else ""
                if word and f"{prefix}/{word}" not in items:
                    raise DatasetError(f"{path}, line {number}: no xml with an image for {word!r}. Delete the line.")
                if word and split:
                    splits.setdefault(split, []).append(f"{prefix}/{word}")
    trainval = splits.pop("trainval", [])
    if trainval and "train" not in splits:
        splits["train"] = trainval
    return {split: keys for split, keys in splits.items() if keys}


def _text(xml: Path) -> str:
    text = xml.read_text(encoding="utf-8", errors="replace")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DatasetError(f"'{xml}' defines entities, which VOC annotations do not need. Take the lines out.")
    return text


def _read(
    listing: Listing, items: list[Item], contiguous: dict[str, int], ignored: frozenset[str], problems: Problems
) -> Records:
    """Detectron2's data set dicts in the order of the list."""
    records = []
    for number, (xml, image) in enumerate(items, start=1):
        path = listing.root / image
        try:
            root = _parse(xml)
            sides = [root.findtext(f"size/{key}", "").strip() for key in ("width", "height")]
            usable = all(map(_SIDE.fullmatch, sides))
            width, height = (int(sides[0]), int(sides[1])) if usable else read_size(path)
        except DatasetError as error:
            problems.refuse("unreadable image" if str(path) in str(error) else "malformed xml", str(xml), error)
            continue
        record: dict[str, Any] = {"file_name": str(path), "image_id": number, "width": width, "height": height}
        record |= {"annotations": [], **({"ignore_regions": []} if ignored else {})}
        for index, node in enumerate(root.iterfind("object")):
            name = (node.findtext("name") or "").strip()
            if name not in contiguous and name not in ignored:
                text = f"<name> is {name!r}. Expected one of {', '.join(contiguous)}."
                problems.error("unknown class", _where(xml, index), text)
                continue
            tag, keys = ("bndbox", _CORNERS) if node.find("robndbox") is None else ("robndbox", _ROTATED)
            values = [_number(node.findtext(f"{tag}/{key}")) for key in keys]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                found = dict(zip(keys, values))
                expected = "four numbers in px" if tag == "bndbox" else "four numbers in px and an angle in radians"
                text = f"<{tag}> of this {name} is {found}. Expected {expected}. Correct it."
                problems.error("malformed box", _where(xml, index), text)
                continue
            where = f"{xml}, object {index + 1}"  # finding the line costs reading the file again
            if tag == "robndbox":
                box = horizontal_box(known)
            else:
                xmin, ymin, xmax, ymax = known
                box = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
                if xmax < xmin or ymax < ymin:
                    box[2:] = [0.0, 0.0]
            if box_in_image(box, (width, height), where, problems):
                if name in ignored:
                    record["ignore_regions"].append(box)
                else:
                    crowd = (node.findtext("difficult") or "0").strip() == "1"
                    record["annotations"].append(to_annotation(box, contiguous[name], crowd=crowd))
        records.append(record)
    log_records(_logger, listing.root, records, problems)
    return records


def _parse(xml: Path) -> ET.Element:
    try:
        return ET.fromstring(_text(xml))
    except ET.ParseError as error:
        line = error.position[0]
        raise DatasetError(f"{xml}, line {line}: not well-formed xml ({error}). Write it again.") from error


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _where(xml: Path, index: int) -> str:
    """The xml and the line in which its object of this number begins."""
    starts = [match.start() for match in re.finditer("<object", _text(xml))]
    line = _text(xml).count("\n", 0, starts[index]) + 1 if index < len(starts) else 1
    return f"{xml}, line {line}"
