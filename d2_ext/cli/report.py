"""One HTML file about a run: curves, AP, confusion, images, masks, speed, operations, configuration, environment.

Several run folders are compared: mean and spread of their metrics, and their curves in one picture. The file needs no
network and runs no script. A part whose input is missing says what is missing and how to make it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.data import register_coco_folder, register_folder
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.report import ReportOptions, write_report
from d2_ext.report.comparison import comparison_text, write_comparison
from d2_ext.report.run_folder import read_run
from d2_ext.visualization.mask_ratios import plot_mask_ratios, read_mask_ratios

from detectron2.data import DatasetCatalog

EXAMPLES = """examples:
  a run of the quick start, into output/quickstart/report.html:
    python tools/report.py output/quickstart
  more images, drawn and counted from another score on:
    python tools/report.py output/quickstart --images 8 --score-threshold 0.5 --output quickstart.html
  several runs, such as those of train --seeds, compared on one page:
    python tools/report.py output/quickstart/seed1 output/quickstart/seed2 --output compared.html
  a run on your own folder, if that was moved, or if Python registered its COCO json for the training:
    python tools/report.py output/mine --data path/to/folder
  the active shares of a sparse head as a figure of their own, too:
    python tools/report.py output/quickstart --mask-plot output/quickstart/mask_ratios.png

exit codes: 0 written, 1 data set unusable or file not writable, 2 wrong usage
"""
PLOT_TYPES = (".png", ".svg", ".pdf", ".jpg")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "run_folder", type=Path, nargs="+", help="OUTPUT_DIR of a training or evaluation; several are compared"
    )
    parser.add_argument(
        "--output", type=Path, help="HTML file (report.html in the run folder; comparison.html above several)"
    )
    parser.add_argument("--config-file", type=Path, help="the run's recipe, if its log does not name it")
    parser.add_argument("--data", type=Path, help="the test set's folder: if it is elsewhere by now, or a COCO json")
    parser.add_argument(
        "--score-threshold",
        type=number_in(float, 0, 1),
        help="of the confusion matrix and the images (TEST.PICTURE_SCORE_THRESH)",
    )
    parser.add_argument(
        "--images", type=number_in(int, 0), default=4, help="so many worst and so many best images (%(default)s)"
    )
    parser.add_argument(
        "--mask-plot", type=_plot, metavar="FILE", help="also plot the active shares of a sparse head: .png, .svg, ..."
    )
    return parser


def _plot(text: str) -> Path:
    if Path(text).suffix.lower() not in PLOT_TYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends with one of {', '.join(PLOT_TYPES)}")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), report, argv)


def report(args: argparse.Namespace) -> None:
    """Write the page, and the plot.

    Raises:
        ConfigError: the folder is no run folder, or ``--data`` does not fit it.
        DatasetError: a data set, or the run's masks, cannot be used.
    """
    folder = args.run_folder[0]
    if len(args.run_folder) > 1:
        if args.mask_plot or args.data or args.config_file:
            raise ConfigError("--mask-plot, --data and --config-file are about one run; give one run folder.")
        above = Path(os.path.commonpath([path.resolve().parent for path in args.run_folder]))
        page = write_comparison(args.run_folder, args.output or above / "comparison.html")
        print(f"{comparison_text(args.run_folder)}\n\nWrote {page}")
        return
    if args.mask_plot:
        curves = read_mask_ratios(folder / "metrics.json")
        with replacing(args.mask_plot) as path:
            plot_mask_ratios(curves, title=folder.resolve().name).savefig(path, dpi=120)
        print(f"Wrote {args.mask_plot}")
    if args.data:
        _register(args.data, folder)
    options = ReportOptions(args.score_threshold, args.images, args.config_file)
    page = write_report(folder, args.output or folder / "report.html", options)
    print(f"Wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")


def _register(folder: Path, run_folder: Path) -> None:
    """Register ``--data`` under the name that the run's config has for its test set."""
    run = read_run(run_folder)
    if not run.setting("DATASETS.FOLDER"):
        unknown = [name for name in run.test_sets() if name not in DatasetCatalog]
        if len(unknown) != 1:
            raise ConfigError(
                f"--data stands for the one test set that is not registered, but of this run {len(unknown)} are not"
                f"{': ' if unknown else ''}{', '.join(unknown)}. Leave it out."
            )
        register_coco_folder(unknown[0], folder)
        return
    # A run on own data: the folder is in whichever format it was, and may lie elsewhere by now.
    if not folder.is_dir():
        raise ConfigError(f"--data: no folder '{folder.absolute()}'.")
    own = register_folder(
        folder,
        data_format=run.setting("DATASETS.FORMAT", ""),
        share=run.number("DATASETS.HOLD_OUT", 0.2),
        seed=int(run.number("DATASETS.HOLD_OUT_SEED", 0)),
    )
    missing = [name for name in run.test_sets() if name not in own.images]
    if missing:
        raise ConfigError(
            f"--data {folder} has {', '.join(own.images)}, but the run was evaluated on {missing[0]}. Expected the "
            f"folder of the training, under the name that it had there: {run.setting('DATASETS.FOLDER')}."
        )
