"""Check a data set of any known format: what is in it, and what is wrong with boxes, labels and images."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.data.check import SplitReport, check_folder
from d2_ext.data.formats import FORMATS, DataFolder, recognise
from d2_ext.data.problems import Problem
from d2_ext.errors import DatasetError
from d2_ext.utils.options import number_in
from d2_ext.visualization.data_charts import draw_histograms

from tabulate import tabulate
from tqdm import tqdm

EXAMPLES = """examples:
  everything: labels, boxes and every pixel of every image:
    python tools/check_dataset.py datasets/demo
  headers of the images only (fast), and histograms of classes and sizes:
    python tools/check_dataset.py datasets/demo --headers-only --chart demo.png
  for a script, warnings counted as errors:
    python tools/check_dataset.py datasets/demo --json demo_check.json --strict

exit codes: 0 no errors, 1 errors found (or the folder cannot be read), 2 wrong usage
"""
CHART_TYPES = (".png", ".jpg", ".pdf", ".svg")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the data set")
    parser.add_argument("--format", choices=list(FORMATS), default="", help="where the folder could be several")
    parser.add_argument("--headers-only", action="store_true", help="do not decode images, nor look for equal ones")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw histograms of classes and sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found")
    parser.add_argument(
        "--max-listed", type=number_in(int, 0), default=5, metavar="N", help="places printed of a kind (%(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="warnings give exit code 1, too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    wrong = _usage_error(args)
    if wrong:
        print(f"check_dataset: {wrong}", file=sys.stderr)
        return 2
    logging.getLogger("d2_ext.data").setLevel(logging.ERROR)  # the readers' summaries are in the tables
    try:
        data = recognise(args.folder, args.format)
        reports = _check(data, args)
        if args.chart:
            _write_chart(args.chart, data, reports)
        if args.json:
            _write_json(args.json, data, reports)
    except (DatasetError, OSError) as error:
        print(f"check_dataset: {error}", file=sys.stderr)
        return 1
    _print(data, reports, args.max_listed)
    for file in filter(None, (args.chart, args.json)):
        print(f"Wrote {file.absolute()}")
    counts = Counter(problem.severity for report in reports for problem in report.found)
    print(f"{counts['error']} errors, {counts['warning']} warnings")
    return int(bool(counts["error"] or (args.strict and counts["warning"])))


def _usage_error(args: argparse.Namespace) -> str:
    if not args.folder.is_dir():
        return f"no folder '{args.folder.absolute()}'."
    if args.chart and args.chart.suffix.lower() not in CHART_TYPES:
        return f"--chart {args.chart}: expected a name that ends in {', '.join(CHART_TYPES)}."
    return ""


def _check(data: DataFolder, args: argparse.Namespace) -> list[SplitReport]:
    total = sum(split.num_images for split in data.splits)
    with tqdm(total=total, unit=" images", disable=args.quiet, leave=False) as bar:
        done: dict[str, int] = {}

        def progress(split: str, count: int) -> None:
            bar.update(count - done.get(split, 0))
            done[split] = count

        return check_folder(data, decode=not args.headers_only, progress=progress)


def _print(data: DataFolder, reports: list[SplitReport], max_listed: int) -> None:
    print(f"{data.root}: format {data.format}, {len(data.classes)} classes")
    for note in data.notes:
        print(f"  - {note}")
    rows = [(r.name, r.images, r.empty, sum(r.per_class), r.regions, _per_image(r), *r.sizes) for r in reports]
    heads = ("split", "images", "without objects", "objects", "ignored", "an image", "small", "medium", "large")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".1f"))
    classes = [(name, *(r.per_class[i] for r in reports)) for i, name in enumerate(data.classes)]
    print(f"\n{tabulate(classes, ('class', *(r.name for r in reports)), tablefmt='github')}\n")
    for (severity, kind), problems in _grouped(reports).items():
        print(f"{severity}: {kind}: {len(problems)}")
        for problem in problems[:max_listed]:
            print(f"  {problem.where}: {problem.text}" if problem.where not in problem.text else f"  {problem.text}")
        if len(problems) > max_listed:
            print(f"  ... and {len(problems) - max_listed} more (--json lists all)")
    for report in reports:
        missing = [name for name, count in zip(data.classes, report.per_class) if not count]
        if missing:
            print(f"note: '{report.name}' has no object of: {', '.join(missing)}")


def _per_image(report: SplitReport) -> float:
    return sum(report.per_class) / max(1, report.images)


def _grouped(reports: list[SplitReport]) -> dict[tuple[str, str], list[Problem]]:
    """Problems by severity and kind, errors first."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted((p for r in reports for p in r.found), key=lambda p: p.severity):
        groups.setdefault((problem.severity, problem.kind), []).append(problem)
    return groups


def _write_chart(path: Path, data: DataFolder, reports: list[SplitReport]) -> None:
    def write(temporary: str) -> None:
        draw_histograms(
            temporary,
            data.classes,
            {r.name: r.per_class for r in reports},
            {r.name: r.sides for r in reports},
            {r.name: r.crowding for r in reports},
        )

    _write_whole(path, write)


def _write_json(path: Path, data: DataFolder, reports: list[SplitReport]) -> None:
    def write(temporary: str) -> None:
        Path(temporary).write_text(json.dumps(_content(data, reports), indent=1))

    _write_whole(path, write)


def _content(data: DataFolder, reports: list[SplitReport]) -> dict[str, Any]:
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
    return {
        "folder": str(data.root),
        "format": data.format,
        "classes": list(data.classes),
        "notes": list(data.notes),
        "splits": splits,
    }


def _write_whole(path: Path, write: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sys.exit(main())
