"""Try learning rates: train some steps with a rate that rises from step to step, draw the loss, propose a rate.

The model, its weights and the run folder stay as they are; nothing but the image is written.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import add_overrides, command_parser, number_in, run_command
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.runs.config import load_run_config
from d2_ext.runs.lr_range import try_rates
from d2_ext.runs.preflight import check_run
from d2_ext.visualization.lr_chart import draw_lr_range

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

EXAMPLES = """examples:
  the rates from 0.00001 to 1 in 200 steps of a recipe:
    python tools/lr_find.py --config-file configs/quickstart/fcos_R18_synthetic.yaml
  on your own folder with another batch size, another range:
    python tools/lr_find.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --data datasets/demo \\
        --lowest 0.0001 --highest 0.1 --iterations 300 --output demo_lr.png --opts SOLVER.IMS_PER_BATCH 4

exit codes: 0 done, 1 data, weights or the image cannot be used, 2 wrong usage
"""
CHART_TYPES = (".png", ".jpg", ".pdf", ".svg")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", required=True, help="recipe of the training")
    parser.add_argument("--data", default="", metavar="FOLDER", help="own data set, as of training")
    parser.add_argument("--iterations", type=number_in(int, 10), default=200, help="steps (%(default)s)")
    parser.add_argument("--lowest", type=number_in(float, 0), default=1e-5, help="rate of the first step (%(default)s)")
    parser.add_argument("--highest", type=number_in(float, 0), default=1.0, help="rate of the last step (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("lr_find.png"), help="image to write (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the image if it is there")
    add_overrides(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), find, argv)


def find(args: argparse.Namespace) -> None:
    """Try the rates, draw and propose.

    Raises:
        ConfigError, DatasetError, CheckpointError: what would stop the training, too; the image cannot be written.
    """
    if args.output.suffix.lower() not in CHART_TYPES:
        raise ConfigError(f"--output {args.output}: expected a name that ends in {', '.join(CHART_TYPES)}.")
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"--output: {args.output} is there already. Choose another name, or add --overwrite.")
    cfg = load_run_config(args.config_file, args.opts, data=args.data)
    check_run(cfg)
    for name in ("d2_ext", "detectron2", "fvcore"):
        setup_logger(name=name).setLevel(logging.ERROR)
    with tqdm(total=args.iterations, unit=" steps", disable=None, leave=False) as bar:
        found = try_rates(
            cfg, lowest=args.lowest, highest=args.highest, steps=args.iterations, progress=lambda: bar.update()
        )
    with replacing(args.output) as path:
        draw_lr_range(path, found.rates, found.losses, found.smoothed, found.proposal)
    solver, smoothed, best = cfg.SOLVER, found.smoothed, found.lowest
    images = solver.IMS_PER_BATCH * solver.ACCUMULATE_BATCHES
    print(
        f"{len(found.rates)} steps of {images} images with {solver.OPTIMIZER}, rates {found.rates[0]:.2g} to "
        f"{found.rates[-1]:.2g}: the mean loss went from {smoothed[0]:.3g} to {smoothed[best]:.3g} at "
        f"{found.rates[best]:.2g}, and was {smoothed[-1]:.3g} at the last step."
    )
    if found.proposal is not None:
        print(f"Proposed: SOLVER.BASE_LR {found.proposal:.2g} (the recipe has {solver.BASE_LR:g}; nothing was changed)")
    elif best < len(smoothed) / 2:
        print("No proposal: the loss rose from the start. Lower --lowest, or take more --iterations.")
    else:
        print("No proposal: the loss still fell at the last step. Raise --highest.")
    print(f"Wrote {args.output.absolute()}")
