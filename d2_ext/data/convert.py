"""Write a recognized folder as COCO jsons, with the images linked, copied or left where they are."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from d2_ext.data.folder import OwnData
from d2_ext.data.formats.coco_json import add_ignore_regions
from d2_ext.errors import DatasetError
from d2_ext.files import NO_LINKS

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict

__all__ = ["MARKER", "IMAGES", "REGIONS", "convert_folder"]

MARKER = "converted.json"  # says that a folder was made here, and may be replaced
IMAGES = ("link", "copy", "leave")
REGIONS = ("crowd", "class")
IGNORE_CLASS_NAME = "ignored"  # recognized by d2_ext.data.formats

_logger = logging.getLogger(__name__)


def convert_folder(own: OwnData, output: Path, *, images: str = "link", regions: str = "crowd") -> dict[str, int]:
    """Write ``annotations/<split>.json`` and ``images/<split>/`` of a registered folder.

    Everything is written beside the output and moved into its place at the end: a failure leaves what was there.

    Args:
        own: from :func:`d2_ext.data.folder.register_folder`.
        output: replaced if it exists.
        images: "link" (symbolic links), "copy", or "leave": then file names are relative to the folder read.
        regions: ignore regions become crowds of every class ("crowd", which COCO's metric ignores), or annotations of
            an extra class "ignored" ("class").

    Returns:
        Split -> number of images.

    Raises:
        DatasetError: if the folder read is unusable, or the output cannot be written.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))  # for its owner only
    except OSError as error:
        raise DatasetError(f"'{output}' cannot be written: {error}. Give another folder.") from error
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        counts = {}
        for name in own.images:
            split = name.rsplit("_", 1)[1]
            if split != "all" or len(own.images) == 1:
                counts[split] = _write_split(name, split, new, own.data.root, images, regions)
        facts = {"source": str(own.data.root), "format": own.data.format, "images": counts, "notes": own.data.notes}
        (new / MARKER).write_text(json.dumps(facts, indent=1))
        if output.exists():  # the old folder steps aside, and goes when the new one is in its place
            os.replace(output, old)
        try:
            os.replace(new, output)
        except BaseException:
            if old.exists():
                os.replace(old, output)
            raise
    except OSError as error:
        raise DatasetError(f"'{output}' cannot be written: {error}. Give another folder.") from error
    finally:
        if output.exists() or not old.exists():  # else the old one could not be put back, and must not go
            shutil.rmtree(work, ignore_errors=True)
    return counts


def _write_split(name: str, split: str, work: Path, root: Path, images: str, regions: str) -> int:
    """Write one split of a registered folder into ``work``; returns how many images it has."""
    content = convert_to_coco_dict(name)
    content.pop("licenses", None)
    records = DatasetCatalog.get(name)
    add_ignore_regions(content, records, class_name=IGNORE_CLASS_NAME if regions == "class" else None)
    files = [Path(record["file_name"]) for record in records]
    base = root if images == "leave" else Path(os.path.commonpath([file.absolute().parent for file in files]))
    for image, file in zip(content["images"], files, strict=True):
        image["file_name"] = os.path.relpath(file.absolute(), base.absolute()).replace(os.sep, "/")
        if images == "leave":
            continue
        target = work / "images" / split / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if images == "copy":
            shutil.copyfile(file, target)
        else:
            try:
                target.symlink_to(file.resolve())
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                raise DatasetError(
                    f"'{target.name}' cannot be linked: {error.strerror}. Some disks have no links, and Windows makes "
                    "them in its developer mode alone. Add --images copy."
                ) from error
    path = work / "annotations" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return len(records)
