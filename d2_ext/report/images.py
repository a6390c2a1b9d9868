"""The worst and the best images of a test set, with ground truth and detections, inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError
from d2_ext.images import read_image
from d2_ext.report.blocks import Block, Box, Image, Missing, MissingInput, Text
from d2_ext.report.judged import Judged
from d2_ext.report.verdicts import Verdict

import cv2
import numpy as np

LONGER_SIDE = 640  # px of an image on the page
JPEG_QUALITY = 78
WIDE_SIDE = 1280  # px of the mask images of the run, whose captions must stay readable


def image_blocks(judged: Judged, verdicts: Mapping[Any, Verdict], score_threshold: float, count: int) -> list[Block]:
    """Draw ``count`` images of lowest, and as many of highest F1; images without objects and detections are no use.

    Args:
        judged: the test set.
        verdicts: by image id.
        score_threshold: used for them, for the text.
        count: of each kind.
    """
    told = {key: v for key, v in verdicts.items() if v.found or v.mistakes}
    if not told:
        raise MissingInput("No image has objects or detections at this score threshold.")
    ranked = sorted(told, key=lambda key: (told[key].f1, -told[key].mistakes))
    count = min(count, (len(ranked) + 1) // 2)
    rest = ranked[count:]
    best = sorted(rest[max(0, len(rest) - count) :], key=lambda key: (-told[key].f1, -len(told[key].found)))
    blocks: list[Block] = [
        Text(
            f"Ranked by F1 of the detections with a score of at least {score_threshold:g} at IoU 0.5; of equal ones "
            "those with more mistakes count as worse. Left the ground truth, right the detections: green solid found, "
            "orange dashed missed, red dotted false, violet dash-dotted wrong class, gray not judged. Hold the pointer "
            "over a box to read its class and score."
        )
    ]
    for kind, keys in (("Worst", ranked[:count]), ("Best", best)):
        blocks += [_draw(judged, key, told[key], f"{kind} {rank}") for rank, key in enumerate(keys, start=1)]
    return blocks


def embedded_file(path: Path, alt: str, caption: str) -> Image:
    """An image file of the run as it is, made smaller if it is large.

    Raises:
        MissingInput: if it is no readable image.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise MissingInput(f"{path} cannot be read as an image.")
    address, width, height, _ = _embed(image, WIDE_SIDE)
    return Image(path.name, address, width, height, {"": []}, alt, caption)


def _draw(judged: Judged, image_id: Any, verdict: Verdict, title: str) -> Block:
    record = judged.records[image_id]
    path = Path(record["file_name"])
    try:
        image = read_image(path)
    except DatasetError as error:
        return Missing(f"{title}: {error}")
    address, width, height, scale = _embed(image, LONGER_SIDE)
    names = dict(zip(judged.category_ids, judged.class_names))
    truth = [
        *(_box(target, "found", names, scale) for _, target in verdict.found),
        *(_box(target, "confused", names, scale) for _, target in verdict.confused),
        *(_box(target, "missed", names, scale) for target in verdict.missed),
    ]
    detections = [
        *(_box(row, "found", names, scale) for row, _ in verdict.found),
        *(_box(row, "confused", names, scale) for row, _ in verdict.confused),
        *(_box(row, "false", names, scale) for row in verdict.false),
        *(_box(row, "ignored", names, scale) for row in verdict.ignored),
    ]
    # A region is a crowd of each class; one box of it is enough.
    regions = {tuple(row["bbox"]): row for row in verdict.regions}
    for box in record.get("ignore_regions", []):  # those that the ground truth does not hold as crowds (VisDrone's)
        regions.setdefault(tuple(box), {"bbox": box, "category_id": None})
    ignored = [_box(row, "ignored", {}, scale) for row in regions.values()]
    summary = (
        f"{len(verdict.found)} found, {len(verdict.missed)} missed, {len(verdict.false)} false, "
        f"{len(verdict.confused)} with a wrong class"
    )
    return Image(
        path.name,
        address,
        width,
        height,
        {"ground truth": [*ignored, *truth], "detections": [*ignored, *detections]},
        f"{title}: {path.name} with ground truth and detections; {summary}.",
        f"{title}: {path.name}, F1 {verdict.f1:.2f}: {summary}",
    )


def _box(row: Mapping[str, Any], look: str, names: Mapping[Any, str], scale: float) -> Box:
    x, y, width, height = (round(float(value) * scale, 1) for value in row["bbox"])
    label = names.get(row.get("category_id"), "not judged")
    if "score" in row:
        label = f"{label} {row['score']:.2f}"
    return Box(x, y, max(width, 0.0), max(height, 0.0), look, label)


def _embed(image: np.ndarray, longer_side: int) -> tuple[str, int, int, float]:
    """Data address, width, height and scale of a BGR image."""
    scale = min(1.0, longer_side / max(image.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}", *size, scale
