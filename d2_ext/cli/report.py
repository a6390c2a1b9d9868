"""One HTML file about a run: curves, AP, confusion, images, masks, speed, operations, configuration, environment.

The file needs no network and runs no script. A part whose input is missing says what is missing and how to make it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_ext.data import register_coco_folder, register_folder
from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.report import ReportOptions, write_report
from d2_ext.report.run_folder import RunFolder, read_run
from d2_ext.utils.options import number_in

from detectron2.data import DatasetCatalog

EXAMPLES = """examples:
  a run of the quick start, into output/quickstart/report.html:
    python tools/report.py output/quickstart
  more images, drawn and counted from another score on:
    python tools/report.py output/quickstart --images 8 --score-threshold 0.5 --output quickstart.html
  a run on your own folder, if that was moved, or if Python registered its COCO json for the training:
    python tools/report.py output/mine --data path/to/folder

exit codes: 0 written, 1 data set unusable or file not writable, 2 wrong usage
"""


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_folder", type=Path, help="OUTPUT_DIR of a training or evaluation")
    parser.add_argument("--output", type=Path, help="HTML file (report.html in the run folder)")
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
    return parser


def _register(args: argparse.Namespace) -> None:
    """Register ``--data`` under the name that the run's config has for its test set."""
    run = read_run(args.run_folder)
    if run.setting("DATASETS.FOLDER"):
        _register_moved(args.data, run)
        return
    unknown = [name for name in run.test_sets() if name not in DatasetCatalog]
    if len(unknown) != 1:
        raise ConfigError(
            f"--data stands for the one test set that is not registered, but of this run {len(unknown)} are not"
            f"{': ' if unknown else ''}{', '.join(unknown)}. Leave it out."
        )
    register_coco_folder(unknown[0], args.data)


def _register_moved(folder: Path, run: RunFolder) -> None:
    """Register the folder of a run on own data in whichever format it is; it may lie elsewhere by now."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    options = ReportOptions(args.score_threshold, args.images, args.config_file)
    try:
        if args.data:
            _register(args)
        path = write_report(args.run_folder, args.output or args.run_folder / "report.html", options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
