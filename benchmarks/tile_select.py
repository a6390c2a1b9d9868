"""What TEST.TILE.SELECT saves and costs: time, AP50 and objects in skipped tiles beside those of all tiles.

Large thermal images are made of HIT-UAV's test images, and the model zoo's thermal_drone detects on them. Objects fill
a part of an image; around it lies ground without objects. Both sides see every image in turn, on one thread; times are
those that the processor worked. Needs the data set hit_uav.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2_ext import model_zoo
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.evaluation import build_evaluator
from d2_ext.inference import BatchPredictor, TiledDetector, read_image
from d2_ext.inference.tiles import Tile

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from side_by_side import write_json
from tabulate import tabulate

EXAMPLES = """examples:
  the table of docs/predict.md, some minutes on one core that has nothing else to do:
    python benchmarks/tile_select.py --json results/bench/tile_select.json
  another reduction and another score, one image of each kind:
    python benchmarks/tile_select.py --select 4 --score 0.3 --images 1
"""
DATA = "hit_uav_test"
HEIGHT, WIDTH = 512, 640  # of the data's images, px
ROWS, COLUMNS = 6, 6  # of a mosaic: 3840 x 3072 px
SCENE = (3000, 4000)  # height and width of a generated image, px
PLACE = 100  # px: in some of the squares of this side stands an object of a generated image
MOSTLY_EMPTY = 0.1  # share of the tiles in which objects lie
FULLER = (0.3, 0.6, 1.0)  # one image of each

Scene = tuple[np.ndarray, np.ndarray, list[int]]  # (H, W, 3) uint8, boxes (M, 4) XYXY px, M classes


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--select", type=int, default=2, help="TEST.TILE.SELECT (%(default)s)")
    parser.add_argument("--score", type=float, default=0.5, help="TEST.TILE.SELECT_SCORE (%(default)s)")
    parser.add_argument("--tile", type=int, default=512, help="TEST.TILE.SIZE (%(default)s)")
    parser.add_argument("--images", type=int, default=2, help="of each kind of mostly empty ground (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        rows = compare(args)
    except (ConfigError, DatasetError) as error:
        print(f"tile_select: {error}", file=sys.stderr)
        return 1
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
    return 0


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of figures for each kind of ground and share of tiles with objects."""
    keys = ["TEST.TILE.SIZE", args.tile, "TEST.DETECTIONS_PER_IMAGE", 1000, "DATASETS.TEST", f"('{DATA}',)"]
    cfg = model_zoo.get_config("thermal_drone", [str(word) for word in keys])
    choosing = ["TEST.TILE.SELECT", args.select, "TEST.TILE.SELECT_SCORE", args.score]
    selecting = model_zoo.get_config("thermal_drone", [str(word) for word in (*keys, *choosing)])
    model = BatchPredictor(cfg).model
    everything, chosen = (TiledDetector(model, c, batch_size=1) for c in (cfg, selecting))
    records = [record for record in DatasetCatalog.get(DATA) if record["annotations"]]
    whole = [record for record in records if not record["ignore_regions"]]
    plain, built = empty_quarters(records)
    in_mosaic, in_scene = everything.tiles(ROWS * HEIGHT, COLUMNS * WIDTH), everything.tiles(*SCENE)
    cases: list[tuple[str, Callable[[random.Random, float], Scene], float, int]] = [
        ("mosaic, plain", lambda rng, share: mosaic(rng, whole, plain, share, in_mosaic), MOSTLY_EMPTY, args.images),
        ("generated", lambda rng, share: generated(rng, whole, share, in_scene), MOSTLY_EMPTY, args.images),
        ("mosaic, built up", lambda rng, share: mosaic(rng, whole, built, share, in_mosaic), MOSTLY_EMPTY, args.images),
    ]
    cases += [(*cases[0][:2], share, 1) for share in FULLER]
    everything.detect(np.zeros((args.tile, args.tile, 3), np.uint8))  # the first call is slower
    rows = []
    for name, draw, share, count in cases:
        scenes = [draw(random.Random(number), share) for number in range(count)]
        rows.append({"ground": name, **figures(cfg, f"{name} {share:g}", scenes, everything, chosen)})
        if args.json:  # after each case, so that what was measured outlives an interruption
            write_json(args.json, rows)
    return rows


def figures(
    cfg: CfgNode, name: str, scenes: Sequence[Scene], everything: TiledDetector, chosen: TiledDetector
) -> dict[str, Any]:
    """Time, AP50 and recall of tiles of both sides on some images; shares in percent."""
    found: dict[str, list[Instances]] = {"all": [], "chosen": []}
    seconds: dict[str, list[float]] = {"all": [], "chosen": []}
    filled, skipped, kept, objects = [], [], 0, 0
    for number, (image, boxes, _) in enumerate(scenes):
        turns = [("all", everything), ("chosen", chosen)]
        looked_at = {}
        for side, detector in turns if number % 2 == 0 else turns[::-1]:
            start = time.process_time()
            looked_at[side] = detector.select(image)
            found[side].append(detector.detect(image, looked_at[side]))
            seconds[side].append(time.process_time() - start)
        filled.append(share_with_objects(boxes, looked_at["all"]))
        skipped.append(1 - len(looked_at["chosen"]) / len(looked_at["all"]))
        kept += len(inside_a_tile(boxes, looked_at["chosen"]))
        objects += len(inside_a_tile(boxes, looked_at["all"]))
    accuracy = {side: ap50(cfg, name, scenes, instances) for side, instances in found.items()}
    return {
        "images": len(scenes),
        "objects": objects,
        "% of tiles with objects": 100 * statistics.mean(filled),
        "% of tiles skipped": 100 * statistics.mean(skipped),
        "% of objects in chosen tiles": 100 * kept / objects,
        "s an image, all tiles": statistics.median(seconds["all"]),
        "s an image, SELECT": statistics.median(seconds["chosen"]),
        "times as fast": statistics.median(a / b for a, b in zip(seconds["all"], seconds["chosen"])),
        "AP50, all tiles": accuracy["all"],
        "AP50, SELECT": accuracy["chosen"],
    }


def ap50(cfg: CfgNode, name: str, scenes: Sequence[Scene], found: Sequence[Instances]) -> float:
    """COCO's AP50 in percent, mean of the classes that have objects, of at most 1000 detections an image."""
    records = []
    for number, (image, boxes, classes) in enumerate(scenes):
        objects = [
            {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": 0}
            for box, category in zip(boxes, classes)
        ]
        size = {"height": image.shape[0], "width": image.shape[1]}
        records.append({"file_name": f"{number}.png", "image_id": number, **size, "annotations": objects})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=MetadataCatalog.get(DATA).thing_classes, evaluator_type="coco")
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            evaluator = build_evaluator(cfg, name, folder)
            evaluator.reset()
            evaluator.process(records, [{"instances": instances} for instances in found])
            return evaluator.evaluate()["bbox"]["AP50"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def inside_a_tile(boxes: np.ndarray, tiles: Sequence[Tile]) -> np.ndarray:
    """Numbers of the boxes (M, 4) XYXY that lie wholly in one of the tiles."""
    areas = np.array([tile.box for tile in tiles]).reshape(-1, 1, 4)
    inside = (areas[..., :2] <= boxes[:, :2]).all(-1) & (areas[..., 2:] >= boxes[:, 2:]).all(-1)
    return inside.any(0).nonzero()[0]


def share_with_objects(boxes: np.ndarray, tiles: Sequence[Tile]) -> float:
    """Share of the tiles into which one of the boxes (M, 4) XYXY reaches."""
    areas = np.array([tile.box for tile in tiles])[:, None]
    reaches = (areas[..., :2] < boxes[:, 2:]).all(-1) & (areas[..., 2:] > boxes[:, :2]).all(-1)
    return float(reaches.any(1).mean())


# The images


def empty_quarters(records: Sequence[dict[str, Any]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Quarters of images without objects and ignore regions: the half with less detail, and that with more."""
    quarters = []
    for record in records[::4]:  # neighbors in the list are of one flight
        taken = [xyxy(annotation) for annotation in record["annotations"]]
        taken += [[x, y, x + w, y + h] for x, y, w, h in record["ignore_regions"]]
        free = [
            (y, x)
            for y in (0, HEIGHT // 2)
            for x in (0, WIDTH // 2)
            if not any(b[0] < x + WIDTH // 2 and b[2] > x and b[1] < y + HEIGHT // 2 and b[3] > y for b in taken)
        ]
        if free:
            image = read_image(record["file_name"])
            quarters += [image[y : y + HEIGHT // 2, x : x + WIDTH // 2] for y, x in free]
    quarters.sort(key=lambda part: np.abs(part - cv2.GaussianBlur(part.astype(np.float32), (0, 0), 6)).mean())
    return quarters[: len(quarters) // 2], quarters[len(quarters) // 2 :]


def xyxy(annotation: dict[str, Any]) -> list[float]:
    """Box of an annotation, px."""
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def mosaic(
    rng: random.Random,
    records: Sequence[dict[str, Any]],
    ground: Sequence[np.ndarray],
    share: float,
    tiles: Sequence[Tile],
) -> Scene:
    """An image of ``ROWS`` x ``COLUMNS`` of the data's, in a corner whole ones with their objects, else ground.

    A cell of ground is a quarter image and its mirror images.
    """
    cells = near_first(rng, ROWS, COLUMNS)
    image = np.zeros((ROWS * HEIGHT, COLUMNS * WIDTH, 3), np.uint8)
    boxes, classes = np.zeros((0, 4)), []
    for row, column in cells:
        y, x = row * HEIGHT, column * WIDTH
        cell = image[y : y + HEIGHT, x : x + WIDTH]
        if share_with_objects(boxes, tiles) < share:
            record = rng.choice(records)
            cell[:] = read_image(record["file_name"])
            placed = [xyxy(annotation) for annotation in record["annotations"]]
            boxes = np.concatenate([boxes, np.add(placed, [x, y, x, y])])
            classes += [annotation["category_id"] for annotation in record["annotations"]]
        else:
            quarter = rng.choice(ground)
            half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
            cell[:] = np.concatenate([half, half[::-1]])
    return image, boxes, classes


def generated(rng: random.Random, records: Sequence[dict[str, Any]], share: float, tiles: Sequence[Tile]) -> Scene:
    """An image of drawn ground with objects of the data, cut out with a rim of 4 px that fades into the ground."""
    height, width = SCENE
    noise = np.random.default_rng(rng.randrange(2**32))
    ground = np.full(SCENE, 110, np.float32)
    for cells, strength in ((4, 25), (40, 8), (400, 4)):  # fields, paths and bushes, grass
        coarse = noise.normal(0, strength, (cells * 3, cells * 4)).astype(np.float32)
        ground += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    ground += noise.normal(0, 2, SCENE)
    boxes: list[list[int]] = []
    classes: list[int] = []
    for row, column in near_first(rng, height // PLACE, width // PLACE):
        record = rng.choice(records)
        annotation = rng.choice(record["annotations"])
        x0, y0, x1, y1 = map(round, xyxy(annotation))
        w, h = x1 - x0, y1 - y0
        x, y = column * PLACE + 4, row * PLACE + 4
        at_the_rim = x0 < 4 or y0 < 4 or x1 + 4 > WIDTH or y1 + 4 > HEIGHT
        if max(w, h) > PLACE - 8 or at_the_rim or rng.random() > 0.3:
            continue
        if share_with_objects(np.array(boxes).reshape(-1, 4), tiles) >= share:
            break
        part = read_image(record["file_name"])[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4, 0]
        mask = cv2.GaussianBlur(
            cv2.copyMakeBorder(np.ones((h, w), np.float32), *[4] * 4, cv2.BORDER_CONSTANT), (0, 0), 1.5
        )
        place = ground[y - 4 : y + h + 4, x - 4 : x + w + 4]
        place += mask * (part - place)
        boxes.append([x, y, x + w, y + h])
        classes.append(annotation["category_id"])
    image = ground.clip(0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2), np.array(boxes, float), classes


def near_first(rng: random.Random, rows: int, columns: int) -> list[tuple[int, int]]:
    """Row and column of all cells, by their distance from one that is drawn."""
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    first = rng.choice(cells)
    return sorted(cells, key=lambda cell: math.dist(cell, first))


if __name__ == "__main__":
    sys.exit(main())
