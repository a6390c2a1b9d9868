"""AP and time of large images: whole, resized, on our tiles, and on the slices of SAHI, by one and the same detector.

The test sets of the config are evaluated with their own evaluators. Needs: pip install sahi.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import check_file
from d2_ext.config.load import load_config
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.evaluation import build_evaluator
from d2_ext.inference import BatchPredictor, read_image

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from side_by_side import write_json
from tabulate import tabulate

EXAMPLES = """examples:
  the quick start's detector on tiles of 512 px:
    python benchmarks/tiled_inference.py --weights output/quickstart/model_final.pth --tile 512 --json tiles.json
  the first ten images of a data set of your own, tiles of 1024 px:
    python benchmarks/tiled_inference.py --weights output/quickstart/model_final.pth --tile 1024 --images 10 \\
        --opts DATASETS.FOLDER datasets/demo
"""
Detect = Callable[[np.ndarray], Instances]
SCORE = 0.05  # what RetinaNet's evaluation keeps
METRICS = ("AP", "AP50", "APs", "APm", "APl")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="of a run folder; its config.yaml lies beside them")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile in px (%(default)s)")
    parser.add_argument("--overlap", type=float, default=0.2, help="share of a tile (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="of our tiles; SAHI takes single slices (%(default)s)"
    )
    parser.add_argument("--images", type=int, default=None, help="only so many of each test set (all)")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        rows = compare(args)
    except ConfigError as error:
        print(f"tiled_inference: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, ImportError) as error:
        print(f"tiled_inference: {error}", file=sys.stderr)
        return 1
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))
    if args.json:
        write_json(args.json, rows)
    return 0


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each side and test set."""
    cfg = _config(args, 0)
    sides = {
        "whole image, own size": lambda: _ours(cfg, args),
        f"whole image, short side {args.tile} px": lambda: _ours(
            _config(args, 0, "INPUT.MIN_SIZE_TEST", args.tile), args
        ),
        "our tiles": lambda: _ours(_config(args, args.tile), args),
        "our tiles and the whole image": lambda: _ours(_config(args, args.tile, "TEST.TILE.WHOLE_IMAGE", True), args),
        "SAHI, its defaults": lambda: _sahi(cfg, args),  # NMS for scores as low as those of an evaluation
        "SAHI, GREEDYNMM": lambda: _sahi(cfg, args, force_postprocess_type=True),
        "SAHI, slices alone, NMS": lambda: _sahi(
            cfg, args, perform_standard_pred=False, postprocess_type="NMS", postprocess_match_metric="IOU"
        ),
    }
    rows = []
    for side, make in sides.items():
        detect = make()
        for name in cfg.DATASETS.TEST:
            scores, seconds = evaluate(cfg, name, detect, args.images)
            rows.append({"side": side, "test set": name, **scores, "s an image": seconds})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def evaluate(cfg: CfgNode, name: str, detect: Detect, count: int | None) -> tuple[dict[str, float], float]:
    """Metrics of a test set, in percent, and mean seconds an image: without a GPU those that the processor worked.

    Args:
        cfg: of the detector.
        name: of the test set.
        detect: (H, W, 3) uint8 BGR to instances on the CPU.
        count: only so many of its first images are detected on and judged; None for all.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    name = first_images(name, count)
    records = DatasetCatalog.get(name)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        evaluator = build_evaluator(cfg, name, folder)  # not in the run's own folder, which holds its results
        evaluator.reset()
        for record in records:
            image = read_image(record["file_name"])
            start = clock()
            found = detect(image)
            seconds += clock() - start
            size = {"height": image.shape[0], "width": image.shape[1]}
            evaluator.process([{**record, **size}], [{"instances": found}])
        results = evaluator.evaluate()["bbox"]
    return {metric: results[metric] for metric in METRICS}, seconds / len(records)


def first_images(name: str, count: int | None) -> str:
    """Register the first images of a data set as one of their own, so that the others are not counted as missed.

    Returns:
        Its name; ``name`` itself without ``count``.
    """
    if count is None:
        return name
    part = f"{name}_first_{count}"
    if part not in DatasetCatalog:
        records = DatasetCatalog.get(name)[:count]
        DatasetCatalog.register(part, lambda: records)
        properties = MetadataCatalog.get(name).as_dict()
        kept = {key: value for key, value in properties.items() if key not in ("name", "json_file")}
        MetadataCatalog.get(part).set(**kept)
    return part


def _config(args: argparse.Namespace, tile: int, *options: Any) -> CfgNode:
    keys = ["MODEL.WEIGHTS", args.weights, "TEST.TILE.SIZE", tile, "TEST.TILE.OVERLAP", args.overlap]
    words = [str(word) for word in (*keys, *options, *args.opts)]
    check_file(args.weights)
    config_file = str(Path(args.weights).with_name("config.yaml"))
    return load_config(config_file, words)


def _ours(cfg: CfgNode, args: argparse.Namespace) -> Detect:
    predictor = BatchPredictor(cfg, batch_size=args.batch_size)
    return lambda image: predictor.predict_batch([image])[0]


def _sahi(cfg: CfgNode, args: argparse.Namespace, **options: Any) -> Detect:
    from d2_ext.inference.sahi_model import SahiDetector

    from sahi.predict import get_sliced_prediction

    model = SahiDetector(BatchPredictor(cfg), confidence_threshold=SCORE)
    sizes = {"slice_height": args.tile, "slice_width": args.tile}
    sizes |= {"overlap_height_ratio": args.overlap, "overlap_width_ratio": args.overlap}

    def detect(image: np.ndarray) -> Instances:
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        found = get_sliced_prediction(rgb, model, verbose=0, **sizes, **options).object_prediction_list
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor([p.bbox.to_xyxy() for p in found], dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor([p.score.value for p in found], dtype=torch.float32),
            pred_classes=torch.tensor([p.category.id for p in found], dtype=torch.int64),
        )

    return detect


if __name__ == "__main__":
    sys.exit(main())
