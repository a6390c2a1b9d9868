"""Check a data set of any known format: what is in it, and what is wrong with boxes, labels and images."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.config.load import load_config
from d2_ext.config.recipes import find_recipe
from d2_ext.data.check import SplitReport, check_folder
from d2_ext.data.formats import FORMATS, recognize
from d2_ext.data.problems import Problem
from d2_ext.errors import ConfigError
from d2_ext.files import replacing
from d2_ext.runs.advice import advice_text, advise
from d2_ext.visualization.data_charts import draw_histograms

from tabulate import tabulate
from tqdm import tqdm

EXAMPLES = """examples:
  everything: labels, boxes and every pixel of every image:
    python tools/check_dataset.py datasets/demo
  headers of the images only (fast), and histograms of classes and sizes:
    python tools/check_dataset.py datasets/demo --headers-only --chart demo.png
  a recipe with levels, sizes, tiles, schedule and sampler that suit the data, over another recipe:
    python tools/check_dataset.py datasets/demo --advise demo.yaml \\
        --config-file configs/quickstart/fcos_R18_synthetic.yaml
  for a script, warnings counted as errors:
    python tools/check_dataset.py datasets/demo --json demo_check.json --strict

exit codes: 0 no errors, 1 errors found (or the folder cannot be read), 2 wrong usage
"""
DEFAULT_RECIPE = "quickstart/fcos_R18_synthetic.yaml"
CHART_TYPES = (".png", ".jpg", ".pdf", ".svg")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("folder", type=Path, help="the data set")
    parser.add_argument("--format", choices=list(FORMATS), default="", help="where the folder could be several")
    parser.add_argument("--headers-only", action="store_true", help="do not decode images, nor look for equal ones")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw histograms of classes and sizes")
    parser.add_argument("--advise", type=Path, metavar="FILE", help="write a recipe with settings that suit the data")
    parser.add_argument(
        "--config-file", default=DEFAULT_RECIPE, help="recipe that --advise builds on: its detector (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found")
    parser.add_argument(
        "--max-listed", type=number_in(int, 0), default=5, metavar="N", help="places printed of a kind (%(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="warnings give exit code 1, too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), check, argv)


def check(args: argparse.Namespace) -> int:
    """Check, print the tables, and write what was asked for.

    Returns:
        1 if there are errors, or warnings with ``--strict``; else 0.

    Raises:
        ConfigError: wrong usage.
        DatasetError: the folder cannot be read.
    """
    _check_usage(args)
    logging.getLogger("d2_ext.data").setLevel(logging.ERROR)  # the readers' summaries are in the tables
    data = recognize(args.folder, args.format)
    total = sum(split.num_images for split in data.splits)
    with tqdm(total=total, unit=" images", disable=args.quiet, leave=False) as bar:
        done: Counter[str] = Counter()

        def progress(split: str, count: int) -> None:
            bar.update(count - done[split])
            done[split] = count

        reports = check_folder(data, decode=not args.headers_only, progress=progress)

    # What is in it.
    print(f"{data.root}: format {data.format}, {len(data.classes)} classes")
    for note in data.notes:
        print(f"  - {note}")
    rows = [
        (r.name, r.images, r.empty, sum(r.per_class), r.regions, sum(r.per_class) / max(1, r.images), *r.sizes)
        for r in reports
    ]
    heads = ("split", "images", "without objects", "objects", "ignored", "an image", "small", "medium", "large")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".1f"))
    classes = [(name, *(r.per_class[i] for r in reports)) for i, name in enumerate(data.classes)]
    print(f"\n{tabulate(classes, ('class', *(r.name for r in reports)), tablefmt='github')}\n")

    _print_problems(data.classes, reports, args.max_listed)

    # Files.
    if args.advise:
        training = next((r for r in reports if r.name == "train"), reports[0])
        base = Path(find_recipe(args.config_file)).absolute()
        text = advice_text(advise(training), load_config(base), base)
        with replacing(args.advise) as path:
            path.write_text(text, encoding="utf-8")
        print(text)
    if args.chart:
        with replacing(args.chart) as path:
            draw_histograms(
                str(path),
                data.classes,
                {r.name: r.per_class for r in reports},
                {r.name: r.sides for r in reports},
                {r.name: r.crowding for r in reports},
            )
    if args.json:
        splits = {
            r.name: {
                "images": r.images,
                "images_without_objects": r.empty,
                "objects": sum(r.per_class),
                "ignored": r.regions,
                "objects_by_class": dict(zip(data.classes, r.per_class)),
                "objects_by_size": dict(zip(("small", "medium", "large"), r.sizes)),
                "found": [vars(problem) for problem in r.found],
            }
            for r in reports
        }
        content = {"folder": str(data.root), "format": data.format, "classes": list(data.classes)}
        with replacing(args.json) as path:
            path.write_text(json.dumps({**content, "notes": list(data.notes), "splits": splits}, indent=1))
    for file in filter(None, (args.advise, args.chart, args.json)):
        print(f"Wrote {file.absolute()}")
    counts = Counter(problem.severity for report in reports for problem in report.found)
    print(f"{counts['error']} errors, {counts['warning']} warnings")
    return int(bool(counts["error"] or (args.strict and counts["warning"])))


def _check_usage(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read."""
    if not args.folder.is_dir():
        raise ConfigError(f"no folder '{args.folder.absolute()}'.")
    if args.chart and args.chart.suffix.lower() not in CHART_TYPES:
        raise ConfigError(f"--chart {args.chart}: expected a name that ends in {', '.join(CHART_TYPES)}.")
    if args.advise:
        if args.advise.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--advise {args.advise}: expected a name that ends in .yaml.")
        if args.advise.exists():
            raise ConfigError(f"--advise: {args.advise} is there already. Choose another name, or remove it.")
        load_config(find_recipe(args.config_file))


def _print_problems(classes: Sequence[str], reports: Sequence[SplitReport], max_listed: int) -> None:
    """What is wrong, by severity and kind, errors first; and which classes are missing."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted((p for r in reports for p in r.found), key=lambda p: p.severity):
        groups.setdefault((problem.severity, problem.kind), []).append(problem)
    for (severity, kind), problems in groups.items():
        print(f"{severity}: {kind}: {len(problems)}")
        for problem in problems[:max_listed]:
            print(f"  {problem.where}: {problem.text}" if problem.where not in problem.text else f"  {problem.text}")
        if len(problems) > max_listed:
            print(f"  ... and {len(problems) - max_listed} more (--json lists all)")
    for report in reports:
        missing = [name for name, count in zip(classes, report.per_class) if not count]
        if missing:
            print(f"note: '{report.name}' has no object of: {', '.join(missing)}")
