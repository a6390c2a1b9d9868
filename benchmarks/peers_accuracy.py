"""Accuracy of a YOLO model of ultralytics after a given time on a CPU, on our data and by our metric.

The model starts from random weights (``pretrained=False``), as our recipes do, and sees the same images of a registered
data set; ignored boxes are left out of its labels, as YOLO has no ignore regions. The package stays in an environment
of its own (it is AGPL): its command ``yolo`` trains (``time=`` hours) and writes its boxes, which are judged here like
those of any detector. Its options are its defaults but for those named with ``--train-options``.
``dev/make_bench_tables.py`` makes the table of docs/peers.md from what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import d2_ext.data.builtin  # noqa: F401  (registers the data sets)
from d2_ext.cli.command import command_parser, run_command
from d2_ext.data.tiles import cut_record, tiles_of
from d2_ext.errors import ConfigError
from d2_ext.report.accuracy import class_accuracies
from d2_ext.report.judged import judge

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from side_by_side import rows_to_extend, write_json

EXAMPLES = """examples:
  44 minutes of one core, judged on the test images:
    python benchmarks/peers_accuracy.py yolo26n --yolo-command yolo_env/bin/yolo --minutes 44 \\
        --json results/bench/peers_accuracy.json --extend
"""
MAX_DETECTIONS = 100  # TEST.DETECTIONS_PER_IMAGE of the HIT-UAV recipes


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("model", help="name of a model of ultralytics")
    parser.add_argument("--yolo-command", required=True, metavar="FILE", help="the command yolo")
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--train", default="hit_uav_train", metavar="NAME", help="data set, as in DATASETS.TRAIN")
    parser.add_argument("--val", default="hit_uav_val", metavar="NAME", help="data set, which YOLO wants, too")
    parser.add_argument("--test", nargs="+", default=["hit_uav_test"], metavar="NAME", help="data sets to judge on")
    parser.add_argument(
        "--size", type=int, default=640, help="px of its square images in tests, and in training without --tile"
    )
    parser.add_argument("--tile", type=int, default=0, help="train on square parts of so many px that show an object")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-options", nargs="*", default=[], metavar="KEY=VALUE", help="for its training")
    parser.add_argument("--beside", nargs="*", default=[], metavar="RECORD", help="of ours, from results/runs")
    parser.add_argument("--folder", type=Path, default=Path("output/peers_accuracy"), help="for data and runs")
    parser.add_argument("--json", required=True, metavar="FILE", help="write the result there")
    parser.add_argument("--extend", action="store_true", help="keep the rows that the file of --json has")
    return parser


def write_split(folder: Path, split: str, dataset: str, tile: int = 0) -> dict[str, Any]:
    """Write a registered data set in YOLO's layout, and return the image ids by file stem.

    Args:
        folder: gets ``images/SPLIT`` and ``labels/SPLIT``.
        split: train, val or test.
        dataset: its registered name.
        tile: cut images into square parts of so many px, and take those that show an object; 0: links to the images.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    for place in (images, labels):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    ids: dict[str, Any] = {}
    for record in DatasetCatalog.get(dataset):
        file = Path(record["file_name"]).resolve()
        for part in parts(record, tile):
            name = f"{len(ids):06d}x"  # not a number, so that the name comes back as it is
            ids[name] = record["image_id"]
            x0, y0, width, height = part["tile"]
            if tile:
                with Image.open(file) as image:
                    image.crop((x0, y0, x0 + width, y0 + height)).save(images / f"{name}.png")
            else:
                (images / f"{name}{file.suffix}").symlink_to(file)
            lines = []
            for annotation in part["annotations"]:
                if annotation.get("iscrowd", 0):
                    continue
                x, y, w, h = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
                box = [(x + w / 2 - x0) / width, (y + h / 2 - y0) / height, w / width, h / height]
                lines.append(" ".join([str(annotation["category_id"]), *(f"{v:.6f}" for v in box)]) + "\n")
            (labels / f"{name}.txt").write_text("".join(lines))
    return ids


def parts(record: dict[str, Any], tile: int) -> list[dict[str, Any]]:
    """The whole image as one part, or its parts that show an object, of which at least half has to be inside."""
    if not tile:
        return [{**record, "tile": (0, 0, record["width"], record["height"])}]
    places = tiles_of(record["width"], record["height"], (tile, tile), 0.2)
    cut = [cut_record(record, place, 0.5) for place in places]
    return [part for part in cut if any(not a.get("iscrowd", 0) for a in part["annotations"])]


def yolo(args: argparse.Namespace, *words: str) -> None:
    """Run the command ``yolo``.

    Raises:
        ConfigError: if it fails.
    """
    command = [args.yolo_command, "detect", *words, "device=cpu", f"project={args.folder.resolve()}", "exist_ok=True"]
    with (args.folder / f"{args.model}_{words[0]}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise ConfigError(f"The command {' '.join(command)} failed; see {log.name}.")


def judged(args: argparse.Namespace, dataset: str, weights: Path) -> dict[str, Any]:
    """Have the boxes of a data set written, and judge them."""
    folder = args.folder / dataset
    ids = write_split(folder, "test", dataset)
    description = write_description(folder, {"train": "test", "val": "test"}, dataset)
    name = f"{args.model}_{dataset}"
    options = ["conf=0.001", f"max_det={MAX_DETECTIONS}", f"imgsz={args.size}", "batch=1", "workers=0", "plots=False"]
    yolo(args, "val", f"model={weights}", f"data={description}", f"name={name}", "save_json=True", *options)
    rows = json.loads((args.folder / name / "predictions.json").read_text())
    known = MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id
    own = {contiguous: category for category, contiguous in known.items()}
    for row in rows:  # it numbers images by their file, and classes from 1 on
        row |= {"image_id": ids[row["image_id"]], "category_id": own[row["category_id"] - 1]}
    results = args.folder / name / "coco_instances_results.json"
    results.write_text(json.dumps(rows))
    classes = class_accuracies(judge(dataset, results, max_detections=MAX_DETECTIONS, command=""))
    return {
        "AP": 100 * fmean(c.ap for c in classes),
        "AP50": 100 * fmean(c.ap50 for c in classes),
        "AP50_by_class": {c.name: 100 * c.ap50 for c in classes},
    }


def ours(path: str) -> dict[str, Any]:
    """Row of a record of ``dev/record_run.py``."""
    record = json.loads(Path(path).read_text())
    metrics = record["metrics"]
    return {
        "training": training(record["model"], record["minutes"]),
        "data": record["data"].partition(",")[0],
        "recipe": record["recipe"],
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "AP50_by_class": {key.partition(" ")[2]: v for key, v in metrics.items() if key.startswith("AP50 ")},
    }


def training(model: str, minutes: float) -> str:
    """What a line of the table is called."""
    return f"{model}, {minutes:.0f} minutes"


def write_description(folder: Path, splits: dict[str, str], dataset: str) -> Path:
    """Write ``data.yaml``: where the images of its splits lie, and the classes."""
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(MetadataCatalog.get(dataset).thing_classes))
    places = "".join(f"{key}: images/{split}\n" for key, split in splits.items())
    path = folder / "data.yaml"
    path.write_text(f"path: {folder.resolve()}\n{places}names:\n{names}")
    return path


def measure(args: argparse.Namespace) -> None:
    """Train, judge, and write a row for each data set."""
    before = rows_to_extend(args.json) if args.extend else []
    folder = args.folder / args.train
    write_split(folder, "train", args.train, args.tile)
    write_split(folder, "val", args.val)
    description = write_description(folder, {"train": "train", "val": "val"}, args.train)
    name = f"{args.model}_seed{args.seed}"
    options = [
        f"imgsz={args.tile or args.size}",
        "workers=0",
        f"seed={args.seed}",
        "pretrained=False",
        "val=False",
        "plots=False",
    ]
    start = [f"model={args.model}.yaml", f"data={description}", f"time={args.minutes / 60}"]
    yolo(args, "train", *start, f"name={name}", *options, *args.train_options)
    weights = args.folder / name / "weights" / "last.pt"
    known = {"training": training(f"{args.model}, seed {args.seed}", args.minutes), "model": args.model}
    known |= {"tile": args.tile, "options": args.train_options}
    rows = [{**known, "data": dataset, **judged(args, dataset, weights)} for dataset in args.test]
    rows += [ours(path) for path in args.beside]
    write_json(args.json, [*before, *rows])
    print(json.dumps(rows, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
