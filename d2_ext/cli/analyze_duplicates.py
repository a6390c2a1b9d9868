"""Is NMS needed? AP of models with and without it, and the score of the second-best box of every object.

A detector trained one-to-one should give each object one confident box: its second-best box scores low, and NMS
changes little. Several models can be put side by side. Writes ``duplicates.json`` and ``duplicates.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.engine import build_config
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, did_you_mean
from d2_ext.evaluation import build_evaluator
from d2_ext.utils.options import number_in

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from torch import nn

EXAMPLES = """examples:
  does the quick start's DeFCN need NMS?
    python tools/analyze_duplicates.py --output output/duplicates \\
        --model DeFCN configs/quickstart/defcn_R18_synthetic.yaml output/quickstart_defcn/model_final.pth
  FCOS beside DeFCN, fifty images:
    python tools/analyze_duplicates.py --output output/duplicates --limit 50 \\
        --model FCOS configs/quickstart/fcos_R18_synthetic.yaml output/quickstart_fcos/model_final.pth \\
        --model DeFCN configs/quickstart/defcn_R18_synthetic.yaml output/quickstart_defcn/model_final.pth

exit codes: 0 done, 1 data or checkpoint unusable, 2 wrong usage
"""
NO_NMS = 1.0  # an IoU above which nothing can be


@dataclass
class Duplicates:
    """What one model gives.

    Attributes:
        ap_with_nms, ap_without_nms: metrics in per cent, by name.
        best, second: per object that was found, the scores of its best and second-best box, 0 if there is no second.
    """

    ap_with_nms: dict[str, float] = field(default_factory=dict)
    ap_without_nms: dict[str, float] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)


def two_best_scores(found: Instances, boxes: torch.Tensor, classes: torch.Tensor, min_iou: float) -> np.ndarray:
    """Scores of the best and second-best detection of each object.

    Args:
        found: detections of one image.
        boxes: (M, 4) objects, XYXY px of the same frame.
        classes: (M,) their classes.
        min_iou: from which on a box of the right class belongs to an object.

    Returns:
        (M, 2), 0 where there is none. A detection belongs to the object that it overlaps most.
    """
    scores = np.zeros((len(boxes), 2))
    if len(boxes) == 0 or len(found) == 0:
        return scores
    iou = pairwise_iou(found.pred_boxes, Boxes(boxes))
    iou[found.pred_classes[:, None] != classes[None]] = 0
    overlap, owner = iou.max(dim=1)
    for index in range(len(boxes)):
        own = found.scores[(owner == index) & (overlap >= min_iou)].sort(descending=True).values[:2]
        scores[index, : len(own)] = own.numpy()
    return scores


@torch.no_grad()
def evaluate(
    cfg: CfgNode, model: nn.Module, dataset: str, folder: Path, *, nms: float | None, limit: int, min_iou: float
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of a model on a data set with one setting of NMS, and the two best scores of all its objects (M, 2)."""
    model.test_nms_thresh = NO_NMS if nms is None else nms
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    evaluator = build_evaluator(cfg, dataset, str(folder))
    evaluator.reset()
    scores = []
    for number, inputs in enumerate(build_detection_test_loader(cfg, dataset)):
        if limit and number >= limit:
            break
        outputs = [{"instances": output["instances"].to("cpu")} for output in model(inputs)]
        evaluator.process(inputs, outputs)
        for item, output in zip(inputs, outputs, strict=True):
            boxes, classes = _objects(records[item["image_id"]])
            scores.append(two_best_scores(output["instances"], boxes, classes, min_iou))
    results = evaluator.evaluate()
    metrics = next(iter(results.values())) if results else {}
    return {key: value for key, value in metrics.items() if "-" not in key}, np.concatenate([np.zeros((0, 2)), *scores])


def _objects(record: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in rows]
    classes = torch.tensor([a["category_id"] for a in rows], dtype=torch.long)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), classes


def analyze(config_file: str, weights: str, args: argparse.Namespace, folder: Path) -> Duplicates:
    """Evaluate one model twice, with and without NMS.

    Raises:
        ConfigError: an unknown data set or metric, or a model whose NMS cannot be switched.
    """
    options = ["MODEL.WEIGHTS", weights, *args.opts]
    cfg = build_config(argparse.Namespace(config_file=config_file, opts=options))
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), "")
    if dataset not in DatasetCatalog:
        raise ConfigError(f"--dataset {dataset}: not registered. {did_you_mean(dataset, DatasetCatalog.list())}")
    model = build_model(cfg).eval()
    if not hasattr(model, "test_nms_thresh"):
        raise ConfigError(
            f"{type(model).__name__} has no attribute 'test_nms_thresh', so its NMS cannot be switched off. Choose a "
            "dense detector (FCOS, DeFCN, RetinaNet, ...)."
        )
    SafeCheckpointer(model).load(weights)
    common = {"limit": args.limit, "min_iou": args.min_iou}
    result = Duplicates()
    result.ap_with_nms, _ = evaluate(cfg, model, dataset, folder / "with_nms", nms=args.nms_thresh, **common)
    result.ap_without_nms, scores = evaluate(cfg, model, dataset, folder / "without_nms", nms=None, **common)
    if args.metric not in result.ap_with_nms:
        raise ConfigError(f"--metric {args.metric}: not computed. {did_you_mean(args.metric, result.ap_with_nms)}")
    found = scores[scores[:, 0] > 0]
    result.best, result.second = found[:, 0].tolist(), found[:, 1].tolist()
    return result


def draw(results: Mapping[str, Duplicates], path: Path, metric: str) -> None:
    """Draw the metric with and without NMS, and how the second-best scores are distributed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    places = np.arange(len(results))
    for shift, label, values in (
        (-0.2, "with NMS", [r.ap_with_nms.get(metric, 0.0) for r in results.values()]),
        (0.2, "without NMS", [r.ap_without_nms.get(metric, 0.0) for r in results.values()]),
    ):
        left.bar_label(left.bar(places + shift, values, width=0.38, label=label), fmt="%.1f")
    left.set_xticks(places, list(results))
    left.set_ylabel(f"{metric} (%)")
    left.margins(y=0.15)
    left.legend(loc="lower center")
    for name, result in results.items():
        scores = np.sort(result.second)
        right.plot(scores, 1 - np.arange(len(scores)) / max(len(scores), 1), label=name)
    right.set_xlabel("score of an object's second-best box, before NMS")
    right.set_ylabel("share of found objects above it")
    right.set_xlim(0, 1)
    right.set_ylim(0, 1)
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(results: Mapping[str, Duplicates], metric: str) -> list[dict[str, Any]]:
    """One row per model, as it is printed and written."""
    return [
        {
            "model": name,
            f"{metric}_with_nms": result.ap_with_nms.get(metric),
            f"{metric}_without_nms": result.ap_without_nms.get(metric),
            "objects_found": len(result.best),
            "mean_best_score": float(np.mean(result.best)) if result.best else None,
            "mean_second_score": float(np.mean(result.second)) if result.second else None,
            "share_with_second_above_0.3": float(np.mean(np.array(result.second) > 0.3)) if result.second else None,
            "with_nms": result.ap_with_nms,
            "without_nms": result.ap_without_nms,
        }
        for name, result in results.items()
    ]


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CONFIG", "WEIGHTS"),
        help="may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dataset", help="a registered data set; the config's first test set if not given")
    parser.add_argument("--limit", type=number_in(int, 0), default=0, help="evaluate the first so many images only")
    parser.add_argument("--nms-thresh", type=number_in(float, 0, 1), default=0.6, help="IoU (%(default)s)")
    parser.add_argument(
        "--min-iou", type=number_in(float, 0, 1), default=0.5, help="of a box that belongs to an object (%(default)s)"
    )
    parser.add_argument("--metric", default="AP", help="what is drawn (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values for all models, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = argument_parser().parse_args(argv)
    args.opts = [option for option in args.opts if option != "--"]
    try:
        results = {name: analyze(config, weights, args, args.output / name) for name, config, weights in args.model}
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = summary(results, args.metric)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, dict)))
    (args.output / "duplicates.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(results, args.output / "duplicates.png", args.metric)
    print(f"Wrote {args.output / 'duplicates.json'} and {args.output / 'duplicates.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
