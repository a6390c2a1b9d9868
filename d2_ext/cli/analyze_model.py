"""Parameters and multiply-adds of a model by part and pyramid level, sparse heads at a share of active positions."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.data.inputs import read_input
from d2_ext.engine import build_config
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.utils.analysis import (
    Count,
    count_multiply_adds,
    count_on_images,
    count_parameters,
    totals,
)
from d2_ext.utils.options import number_in

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

EXAMPLES = """examples:
  the dense baseline of the CEASC paper at its counting size:
    python tools/analyze_model.py --config-file configs/VisDrone/retinanet_R18_FPN512.yaml --size 800x1344
  its sparse version if 10 % of all positions were active:
    python tools/analyze_model.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --active 0.1
  a trained model at its own masks on two images, with the time it takes:
    python tools/analyze_model.py --config-file configs/VisDrone/gfl_ceasc_R18_FPN512.yaml --latency \\
        --images a.jpg b.jpg --opts MODEL.WEIGHTS output/visdrone_gfl_ceasc_R18_FPN512/model_final.pth

exit codes: 0 done, 1 weights or an image cannot be used, 2 wrong usage
"""
LATENCY_RUNS = 5


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument("--size", type=_size, default=(800, 1344), help="HxW in px after padding (800x1344)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--active", type=number_in(float, 0, 1), help="share of active positions of sparse towers, 0 to 1"
    )
    share.add_argument(
        "--images", nargs="+", type=Path, help="measure it on these, at their own sizes, with MODEL.WEIGHTS"
    )
    parser.add_argument("--latency", action="store_true", help=f"also time inference, median of {LATENCY_RUNS}")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes")
    return parser


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HxW, e.g. 800x1344")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        cfg = build_config(args)
        model = build_model(cfg).eval()
        if args.images:
            SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        inputs = [read_input(cfg, path) for path in args.images or []]
        counts = _count(model, args, inputs)
        parameters = count_parameters(model)
    except ConfigError as error:
        print(f"analyze_model: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"analyze_model: {error}", file=sys.stderr)
        return 1
    _print_counts(parameters, counts)
    if args.latency:
        _print_latency(model, inputs or [{"image": torch.zeros(3, *args.size, dtype=torch.uint8)}])
    return 0


def _count(model: nn.Module, args: argparse.Namespace, inputs: Sequence[dict[str, Any]]) -> list[Count]:
    if not inputs:
        return count_multiply_adds(model, args.size, args.active)
    counts, shares = count_on_images(model, inputs)
    if shares[0] is not None:
        rows = [
            [branch, *(f"{statistics.mean(s[branch][i] for s in shares):.2%}" for i in range(len(shares[0][branch])))]
            for branch in shares[0]
        ]
        print(tabulate(rows, headers=["active", *model.head_in_features], tablefmt="pipe"))
    return counts


def _print_counts(parameters: dict[str, int], counts: Sequence[Count]) -> None:
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
    print(f"\n{parameters['trained'] / 1e6:.3f} M of the parameters are trained.")
    details = [[c.part, c.piece, c.level, f"{c.multiply_adds / 1e9:.3f}", f"{c.dense / 1e9:.3f}"] for c in counts]
    print()
    print(tabulate(details, headers=["part", "piece", "level", "G", "dense G"], tablefmt="pipe", disable_numparse=True))


def _print_latency(model: nn.Module, inputs: Sequence[dict[str, Any]]) -> None:
    """Median time of a whole inference, one image at a time."""
    times = []
    with torch.no_grad():
        for run in range(LATENCY_RUNS + 1):  # the first one warms up
            for item in inputs:
                start = time.perf_counter()
                model([item])
                if next(model.parameters()).is_cuda:
                    torch.cuda.synchronize()
                if run:
                    times.append(time.perf_counter() - start)
    device = next(model.parameters()).device
    print(f"\nlatency: {statistics.median(times) * 1e3:.1f} ms an image ({device}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    sys.exit(main())
