"""Is NMS needed? AP of models with and without it, and the score of the second-best box of every object.

A detector trained one-to-one should give each object one confident box: its second-best box scores low, and NMS
changes little. Several models can be put side by side. Writes ``duplicates.json`` and ``duplicates.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.files import replacing
from d2_ext.inference.loading import load_detector
from d2_ext.report.duplicates import draw_duplicates, find_duplicates, summary
from d2_ext.runs.config import load_run_config

from detectron2.data import DatasetCatalog

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


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
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
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), analyze, argv)


def analyze(args: argparse.Namespace) -> None:
    """Evaluate each model twice; print, write and draw what is found.

    Raises:
        ConfigError: an unknown data set or metric, or a model whose NMS cannot be switched.
        CheckpointError, DatasetError: weights or data cannot be used.
    """
    overrides = [option for option in args.opts if option != "--"]
    results = {}
    for name, config_file, weights in args.model:
        cfg = load_run_config(config_file, ["MODEL.WEIGHTS", weights, *overrides])
        dataset = args.dataset or next(iter(cfg.DATASETS.TEST), "")
        if dataset not in DatasetCatalog:
            raise ConfigError(f"--dataset {dataset}: not registered. {did_you_mean(dataset, DatasetCatalog.list())}")
        model, _ = load_detector(cfg, fold=False)
        if not hasattr(model, "test_nms_thresh"):
            raise ConfigError(
                f"{type(model).__name__} has no attribute 'test_nms_thresh', so its NMS cannot be switched off. Choose "
                "a dense detector (FCOS, DeFCN, RetinaNet, ...)."
            )
        found = find_duplicates(
            cfg,
            model,
            dataset,
            args.output / name,
            nms_thresh=args.nms_thresh,
            min_iou=args.min_iou,
            limit=args.limit,
        )
        if args.metric not in found.ap_with_nms:
            raise ConfigError(f"--metric {args.metric}: not computed. {did_you_mean(args.metric, found.ap_with_nms)}")
        results[name] = found
    rows = summary(results, args.metric)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if not isinstance(value, dict)))
    table, chart = args.output / "duplicates.json", args.output / "duplicates.png"
    with replacing(table) as path:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    with replacing(chart) as path:
        draw_duplicates(results, args.metric).savefig(path, dpi=110)
    print(f"Wrote {table} and {chart}")
