"""Latency and AP of exported files beside the model itself: what is worth exporting to.

Every side detects in the same images, one at a time; the sides take turns. AP is that of COCO on the first images
of the config's test set. ``--active`` measures a model with random weights instead, whose masks are set so that this
share of all positions is active; it has no AP. Exported files are kept in a folder and used again if they are there.
``dev/make_bench_tables.py`` makes tables of the documentation from what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.errors import CheckpointError, ConfigError, DatasetError, ExportError
from d2_ext.evaluation.coco_regions import coco_with_regions
from d2_ext.export import (
    SUFFIXES,
    ExportableDetector,
    compare,
    convert_onnx,
    describe,
    eager_runtime,
    export_file,
    load_runtime,
)
from d2_ext.export.levels import dense_maps
from d2_ext.export.runtimes import Runtime
from d2_ext.export.sparse_towers import gathered_maps
from d2_ext.images import read_input
from d2_ext.inference.loading import load_detector
from d2_ext.layers.fold import fold_norms
from d2_ext.runs.config import load_run_config

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from side_by_side import machine, medians, rows_to_extend, write_json
from torch import nn

EXAMPLES = """examples:
  the quick start's model, every side, with AP on 100 images:
    python benchmarks/export.py --config configs/quickstart/retinanet_ceasc_R18_synthetic.yaml \\
        --weights output/quickstart/model_final.pth --ap-images 100 --folder output/exported --json export_cpu.json
  the paper's size with random weights and a tenth of all positions active:
    python benchmarks/export.py --config configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --active 10 \\
        --size 800 1344 --sides eager onnx onnx-sparse
  a trained FCOS, compared on images of other sizes and a batch of two as well; rows added to those of other models:
    python benchmarks/export.py --config configs/quickstart/fcos_R18_synthetic.yaml \\
        --weights output/quickstart_fcos/model_final.pth --sides eager onnx torch openvino --compare photos/*.jpg \\
        --batch 2 --json export_trained.json --append
"""
# Side -> format, how weights are stored, whether sparse towers are gathered, precision of the computation.
SIDES: dict[str, tuple[str, str, bool, str]] = {
    "onnx": ("onnx", "float32", False, "f32"),
    "onnx-sparse": ("onnx", "float32", True, "f32"),
    "onnx-int8": ("onnx", "int8", False, "f32"),
    "onnx-sparse-int8": ("onnx", "int8", True, "f32"),
    "torch": ("torch", "float32", False, "f32"),
    "torch-sparse": ("torch", "float32", True, "f32"),
    "openvino": ("openvino", "float32", False, "f32"),
    "openvino-bf16": ("openvino", "float32", False, "bf16"),
    "openvino-sparse": ("openvino", "float32", True, "f32"),
    "openvino-int8": ("openvino", "int8", False, "f32"),
    "openvino-sparse-int8": ("openvino", "int8", True, "f32"),
}
EAGER_SIDES = ("eager", "eager-folded", "eager-bf16")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="of the model")
    parser.add_argument("--weights", default="", help="checkpoint; empty: random weights")
    parser.add_argument("--sides", nargs="+", default=[*EAGER_SIDES, *SIDES], choices=[*EAGER_SIDES, *SIDES])
    parser.add_argument("--active", type=float, help="share of active positions, per cent, by random weights")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of noise instead of images")
    parser.add_argument("--images", type=int, default=5, help="to time on, of the test set")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FILE", help="more images, not timed")
    parser.add_argument("--batch", type=int, default=0, help="compare on a batch of so many images, too; 0: none")
    parser.add_argument("--calibration", type=int, default=32, help="images of the training set for 8 bits")
    parser.add_argument("--ap-images", type=int, default=0, help="images of the test set for AP; 0: no AP")
    parser.add_argument("--folder", type=Path, default=Path("output/exported"), help="for the exported files")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, the same for every side")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of all threads together")
    parser.add_argument("--json", default="", metavar="FILE", help="write the result there")
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has of other models")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="changes of the config")
    return parser


def images_of(cfg: CfgNode, split: str, number: int) -> list[tuple[int, float, NDArray[Any]]]:
    """Id, scale from the file's frame, and pixels (1, 3, H, W) of the first images of a data set."""
    found = []
    for item in DatasetCatalog.get(cfg.DATASETS[split][0])[:number]:
        read = read_input(cfg, item["file_name"])
        found.append((item["image_id"], read["image"].shape[2] / read["width"], pixels_of(read)))
    return found


def pixels_of(read: dict[str, Any]) -> NDArray[Any]:
    """An image as a batch of one, (1, 3, H, W)."""
    return read["image"][None].numpy()


def batch_of(cfg: CfgNode, number: int) -> NDArray[Any]:
    """The first images of the test set that have one size, as a batch (number, 3, H, W).

    Raises:
        DatasetError: it has not so many of any size.
    """
    by_size: dict[tuple[int, ...], list[NDArray[Any]]] = {}
    for item in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        pixels = pixels_of(read_input(cfg, item["file_name"]))
        alike = by_size.setdefault(pixels.shape, [])
        alike.append(pixels)
        if len(alike) == number:
            return np.concatenate(alike)
    raise DatasetError(f"--batch {number}: {cfg.DATASETS.TEST[0]} has not so many images of one size.")


@torch.no_grad()
def set_active_share(model: nn.Module, image: NDArray[Any], share: float) -> None:
    """Shift the biases of the mask convolutions so that a share of the positions of an image is active."""
    images = model.preprocess_image([{"image": torch.from_numpy(image[0])}])
    maps = model.backbone(images.tensor)
    levels = model.head.mask_logits([maps[name] for name in model.head_in_features])
    logits = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(0, 1).flatten(1)  # a row for each branch
    for tower, own in zip(model.head.towers().values(), logits):
        tower.mask_conv.bias -= own.quantile(1 - share)


def make_sides(model: nn.Module, cfg: CfgNode, args: argparse.Namespace) -> dict[str, tuple[Runtime, float | None]]:
    """Open, and where they are missing export, all sides: runtime and megabytes by name."""
    eager = eager_runtime(model)
    sides: dict[str, tuple[Runtime, float | None]] = {}
    for name in args.sides:
        if name == "eager":
            sides[name] = (eager, None)
        elif name == "eager-folded":
            sides[name] = (eager_runtime(fold_norms(model)), None)
        elif name == "eager-bf16":
            sides[name] = (in_bf16(eager), None)
        else:
            sides[name] = open_side(name, model, cfg, args)
    return sides


def in_bf16(run: Runtime) -> Runtime:
    """The same under autocast."""

    def rounded(images: NDArray[Any]) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run(images)

    return rounded


def open_side(name: str, model: nn.Module, cfg: CfgNode, args: argparse.Namespace) -> tuple[Runtime, float]:
    """Open an exported file; it is written first if it is not there."""
    kind, weights, sparse, precision = SIDES[name]
    stem = f"{Path(args.config).stem}{'_sparse' if sparse else ''}"
    path = args.folder / f"{stem}_{weights}{SUFFIXES[kind]}"
    plain = args.folder / f"{stem}_float32.onnx"
    recorded = path if kind == "torch" else plain  # the others are made from ONNX
    order = cfg.INPUT.FORMAT
    metadata = describe(cfg, model, class_names=[], input_format=order, input_dtype="uint8", weights=weights)
    if not path.exists() and not recorded.exists():
        towers = gathered_maps if sparse else dense_maps
        detector = ExportableDetector(model, model_format=order, input_format=order, tower_pass=towers)
        own = {**metadata, "weights": "float32"}
        write_whole(recorded, lambda file: export_file(detector, file, "torch" if kind == "torch" else "onnx", own))
    if not path.exists():
        calibration = [x for _, _, x in images_of(cfg, "TRAIN", args.calibration)] if weights == "int8" else []
        write_whole(path, lambda file: convert_onnx(plain, file, kind, metadata, calibration=calibration))
    files = [path, path.with_suffix(".bin")] if kind == "openvino" else [path]
    runtime = load_runtime(path, threads=args.threads, precision=precision, trusted=True)
    return runtime, sum(f.stat().st_size for f in files) / 1e6


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a file, and what it puts beside it; the names are given when all are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        write(Path(work) / path.name)
        for file in sorted(Path(work).iterdir()):
            os.replace(file, path.with_name(file.name))


def average_precision(run: Runtime, cfg: CfgNode, number: int) -> dict[str, float]:
    """COCO's AP and AP50, per cent, on the first images of the test set."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    results, image_ids = [], []
    for image_id, scale, pixels in images_of(cfg, "TEST", number):
        found = run(pixels)
        image_ids.append(image_id)
        for box, score, category in zip(found.boxes / scale, found.scores, found.classes):
            x, y, right, bottom = (float(v) for v in box)
            entry = {"image_id": image_id, "category_id": ids[int(category)], "score": float(score)}
            results.append({**entry, "bbox": [x, y, right - x, bottom - y]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_with_regions(cfg.DATASETS.TEST[0])
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"AP": 100 * float(judge.stats[0]), "AP50": 100 * float(judge.stats[1])}


def detect_all(run: Runtime, inputs: Sequence[NDArray[Any]]) -> None:
    """What is timed: one image after the other."""
    for images in inputs:
        run(images)


def inputs_of(cfg: CfgNode, args: argparse.Namespace) -> list[NDArray[Any]]:
    """What is timed: images (1, 3, H, W)."""
    if args.size:
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, (1, 3, *args.size), dtype=np.uint8)]
    return [pixels for _, _, pixels in images_of(cfg, "TEST", args.images)]


def measure(model: nn.Module, cfg: CfgNode, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a side."""
    inputs = inputs_of(cfg, args)
    compared = [*inputs, *(pixels_of(read_input(cfg, path)) for path in args.compare)]
    if args.batch:
        compared.append(batch_of(cfg, args.batch))
    if args.active is not None:
        set_active_share(model, inputs[0], args.active / 100)
    sides = make_sides(model, cfg, args)
    limits = {"score_thresh": model.test_score_thresh, "max_detections": model.max_detections_per_image}
    expected = [eager_runtime(model)(x) for x in compared]
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    functions = {name: partial(detect_all, run, inputs) for name, (run, _) in sides.items()}
    seconds = medians(functions, repeats=args.rounds, clock=clock)
    rows = []
    for name, (run, size) in sides.items():
        found = compare(expected, [run(x) for x in compared], **limits)
        precision = average_precision(run, cfg, args.ap_images) if args.ap_images else {}
        rows.append(
            {
                "config": Path(args.config).stem,
                "side": name,
                "ms": 1e3 * seconds[name] / len(inputs),
                "ratio": seconds[args.sides[0]] / seconds[name],
                "megabytes": size,
                "size": list(inputs[0].shape[2:]),
                "images": len(inputs),
                "compared": [[len(x), *x.shape[2:]] for x in compared],
                "active": args.active,
                "detections": found.detections,
                "matched": found.matched,
                "unmatched": found.unmatched,
                "max_box_diff": found.max_box_diff,
                "max_score_diff": found.max_score_diff,
                "agreement": found.agreement,
                **precision,
            }
        )
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured."""
    print(f"{'side':16} {'ms':>8} {'faster':>7} {'MB':>7} {'box diff':>9} {'agree':>6} {'AP':>6} {'AP50':>6}")
    for row in rows:
        size, ap, ap50 = (row.get(key) for key in ("megabytes", "AP", "AP50"))
        print(
            f"{row['side']:16} {row['ms']:8.1f} {row['ratio']:7.2f} {size or 0:7.1f} {row['max_box_diff']:9.1e} "
            f"{row['agreement']:6.1%} {ap or 0:6.2f} {ap50 or 0:6.2f}"
        )


def other_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the file that ``--append`` keeps: those of other models, and of sides that are not measured now.

    Raises:
        ConfigError: they come from another machine or commit, so that they do not compare.
    """
    if not (args.json and args.append):
        return []
    try:
        rows = rows_to_extend(args.json)
    except ValueError as error:
        raise ConfigError(f"--append: {error}") from error
    return [row for row in rows if row["config"] != Path(args.config).stem or row["side"] not in args.sides]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights, *args.opts]
        cfg = load_run_config(args.config, options)
        earlier = other_rows(args)
        model, _ = load_detector(cfg, fold=False)
        rows = measure(model, cfg, args)
    except ConfigError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, ExportError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"{machine()}; {args.threads} threads a side")
    print_table(rows)
    if args.json:
        write_json(args.json, [*earlier, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
