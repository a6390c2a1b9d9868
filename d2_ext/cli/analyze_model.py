"""Parameters and multiply-adds of a model by part and pyramid level, sparse heads at a share of active positions."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint.safe import load_weights
from d2_ext.cli.command import add_overrides, command_parser, number_in, run_command
from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError
from d2_ext.images import read_input
from d2_ext.utils.analysis import count_multiply_adds, count_on_images, count_parameters, measure_latency, totals

import torch
from detectron2.modeling import build_model
from tabulate import tabulate

EXAMPLES = """examples:
  the dense baseline of the CEASC paper at its counting size:
    python tools/analyze_model.py --config-file configs/VisDrone/retinanet_R18_FPN512.yaml --size 800x1344
  its sparse version if 10 % of all positions were active:
    python tools/analyze_model.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --active 0.1
  a trained model at its own masks on two images, with the time it takes:
    python tools/analyze_model.py --config-file configs/VisDrone/gfl_ceasc_R18_FPN512.yaml --latency \\
        --images a.jpg b.jpg --weights output/visdrone_gfl_ceasc_R18_FPN512/model_final.pth

exit codes: 0 done, 1 weights or an image cannot be used, 2 wrong usage
"""
LATENCY_RUNS = 5


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument("--weights", default="", help="checkpoint of a sparse head; MODEL.WEIGHTS if not given")
    parser.add_argument("--size", type=_size, default=(800, 1344), help="HxW in px after padding (800x1344)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--active", type=number_in(float, 0, 1), help="share of active positions of sparse towers, 0 to 1"
    )
    share.add_argument(
        "--images", nargs="+", type=Path, help="measure it on these, at their own sizes, with trained weights"
    )
    parser.add_argument("--latency", action="store_true", help=f"also time inference, median of {LATENCY_RUNS}")
    add_overrides(parser)
    return parser


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HxW, e.g. 800x1344")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), analyze, argv)


def analyze(args: argparse.Namespace) -> None:
    """Count, and print the tables.

    Raises:
        ConfigError: wrong usage, or a sparse head without trained weights to measure its masks with.
        CheckpointError, DatasetError: weights or an image cannot be used.
    """
    cfg = load_config(args.config_file, [*(["MODEL.WEIGHTS", args.weights] if args.weights else []), *args.opts])
    inputs = [read_input(cfg, path) for path in args.images or []]
    model = build_model(cfg).eval()
    parameters = count_parameters(model)
    if inputs:
        if hasattr(getattr(model, "head", None), "hard_masks"):  # its cost depends on what it has learned
            if not cfg.MODEL.WEIGHTS:
                raise ConfigError("The masks of a sparse head depend on its weights. Give trained ones with --weights.")
            load_weights(model, cfg.MODEL.WEIGHTS)
        counts, shares = count_on_images(model, inputs)
        measured = [share for share in shares if share is not None]
        if measured:
            means = {branch: map(statistics.mean, zip(*(s[branch] for s in measured))) for branch in measured[0]}
            rows = [[branch, *(f"{share:.2%}" for share in by_level)] for branch, by_level in means.items()]
            print(tabulate(rows, headers=["active", *model.head_in_features], tablefmt="pipe"))
    else:
        counts = count_multiply_adds(model, args.size, args.active)

    sums = totals(counts)
    whole = sums["total"].multiply_adds
    rows = [
        [
            name,
            f"{parameters[name] / 1e6:.3f}",
            f"{count.multiply_adds / 1e9:.2f}",
            f"{count.multiply_adds / whole:.1%}",
            f"{count.dense / 1e9:.2f}",
            f"{count.dense / count.multiply_adds:.2f}",
        ]
        for name, count in sums.items()
    ]
    headers = ["part", "parameters (M)", "multiply-adds (G)", "share", "dense equivalent (G)", "dense / this"]
    print(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    print(f"\n{parameters['trained'] / 1e6:.3f} M of the parameters are trained.\n")
    details = [[c.part, c.piece, c.level, f"{c.multiply_adds / 1e9:.3f}", f"{c.dense / 1e9:.3f}"] for c in counts]
    print(tabulate(details, headers=["part", "piece", "level", "G", "dense G"], tablefmt="pipe", disable_numparse=True))
    if args.latency:
        blank = [{"image": torch.zeros(3, *args.size, dtype=torch.uint8)}]
        seconds = measure_latency(model, inputs or blank, LATENCY_RUNS)
        device = next(model.parameters()).device
        print(f"\nlatency: {seconds * 1e3:.1f} ms an image ({device}, {torch.get_num_threads()} threads)")
