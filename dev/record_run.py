"""Judge the weights of a training and write its record, ``results/runs/NAME.json``, from the run's own files.

The averaged weights are judged where the run kept any, or a file that is named. Everything is COCO's metric in percent;
``AP50 <class>`` is of one class. ``active`` and ``mask recall`` are those of ``MaskRecallEvaluator``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, run_command
from d2_ext.engine.trainer import Trainer
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.inference.loading import detector_config, load_detector
from d2_ext.report.accuracy import class_accuracies
from d2_ext.report.judged import judge
from d2_ext.report.run_folder import RunFolder, read_run
from d2_ext.utils.analysis import count_on_images, totals

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

EXAMPLES = """examples:
  python dev/record_run.py output/hit_uav_fcos_sparse --model "sparse FCOS V-22-lite" --table HIT-UAV \\
      --recipe configs/HIT-UAV/fcos_sparse_V22_lite_FPN64.yaml --data hit_uav_test \\
      --output results/runs/hit_uav_fcos_sparse.json
"""
COUNTED_IMAGES = 20  # their mean number of multiply-adds


def record(args: argparse.Namespace) -> None:
    """Judge, and write the record."""
    run = read_run(args.run)
    weights = args.weights or next(
        (str(p) for p in (run.path / "model_final_ema.pth", run.path / "model_final.pth") if p.is_file()), ""
    )
    if not weights:
        raise ConfigError(
            f"{run.path} holds no model_final.pth: the training has not ended. Name a file with --weights."
        )
    start = json.loads((run.path / "run.json").read_text())["starts"][0]
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["DATASETS.TEST", str((args.data,)), "OUTPUT_DIR", folder, "TEST.NUM_PICTURES", "0"]
        cfg = detector_config(weights, str(run.path / "config.yaml"), [*overrides, "TEST.EXPECTED_RESULTS", "[]"])
        model, _ = load_detector(cfg, fold=False)
        results = Trainer.test(cfg, model)
        rows = class_accuracies(
            judge(
                args.data,
                Path(folder) / "inference/coco_instances_results.json",
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                command="",
            )
        )
        parameters, multiply_adds = cost(cfg, model, args.data)
    metrics = {name: results["bbox"][name] for name in ("AP", "AP50", "APs")}
    metrics |= {f"AP50 {row.name}": 100 * row.ap50 for row in rows}
    metrics |= {f"AP {row.name}": 100 * row.ap for row in rows}
    if "masks" in results:
        metrics |= {"mask recall": results["masks"]["recall"], "active": results["masks"]["active"]}
    content = {
        "table": args.table,
        "model": args.model,
        "recipe": args.recipe,
        "data": f"{args.data}, {len(DatasetCatalog.get(args.data))} images",
        "metrics": {name: round(float(value), 3) for name, value in metrics.items()},
        "masks": {name: round(float(value), 3) for name, value in results.get("masks", {}).items()},
        "parameters_M": round(parameters / 1e6, 3),
        "multiply_adds_G": round(multiply_adds / 1e9, 3),
        "seed": start["seed"],
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "minutes": round(minutes(run), 1),
        "curve": curve(run),
        "commit": start["commit"][:7],
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "machine": f"{start['environment']['threads']} thread of an {args.machine or platform.processor() or 'CPU'}, "
        f"torch {start['environment']['torch']}",
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.output) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    print(tabulate(content["metrics"].items(), floatfmt=".2f"))
    print(f"wrote {args.output}")


def cost(cfg: CfgNode, model: torch.nn.Module, dataset: str) -> tuple[int, float]:
    """Parameters, and mean multiply-adds of the first images of a data set."""
    loader = Trainer.build_test_loader(cfg, dataset)
    images = [item for inputs, _ in zip(loader, range(COUNTED_IMAGES)) for item in inputs]
    counts, _ = count_on_images(model, images)
    return sum(p.numel() for p in model.parameters()), totals(counts)["total"].multiply_adds


def minutes(run: RunFolder) -> float:
    """Wall time of all steps; ``time`` of the log is a median over 20 of them."""
    steps, seconds = run.series("time")
    before = [0, *(step + 1 for step in steps[:-1])]
    return sum((step + 1 - first) * s for step, first, s in zip(steps, before, seconds)) / 60


def curve(run: RunFolder) -> list[list[float]]:
    """Iteration, AP and AP50 of each evaluation in training, whose data set is the recipe's own."""
    (steps, ap), (_, ap50) = run.series("bbox/AP"), run.series("bbox/AP50")
    return [[step, round(a, 3), round(b, 3)] for step, a, b in zip(steps, ap, ap50)]


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("run", type=Path, help="run folder of the training")
    parser.add_argument("--weights", default="", help="judged instead of the run's own")
    parser.add_argument("--data", required=True, help="registered data set to judge on")
    parser.add_argument("--table", required=True, help="section of MODEL_ZOO.md")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--recipe", required=True, help="path of the YAML in the repository")
    parser.add_argument("--machine", default="", help="name of the processor, if the system does not say it")
    parser.add_argument("--output", type=Path, required=True, help="the record")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), record, argv)


if __name__ == "__main__":
    raise SystemExit(main())
