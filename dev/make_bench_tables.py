"""Write the tables of pages from what benchmarks measured with ``--json``; they are not edited by hand.

A table stands between two marks, ``<!-- table: FILE KIND -->`` and ``<!-- end of table -->``: FILE is one of
``results/bench``, KIND is "differences" (exported files beside the model) or "speed" (latency and AP of every side) of
``benchmarks/export.py``, "peers" (our light detectors beside others) of ``benchmarks/peers.py``, "heads" (sparse
heads beside dense ones) of ``benchmarks/ceasc.py``, "advice" (what ``check --advise`` proposes beside a grid) of
``benchmarks/advice.py``, or "classes" (AP by class of several trainings).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser
from d2_ext.files import replacing

from tabulate import tabulate

EXAMPLES = """examples:
  python dev/make_bench_tables.py           # write the tables of the pages in docs/
  python dev/make_bench_tables.py --check   # exit code 1 if one is not up to date

exit codes: 0 done, 1 a table is not up to date or figures cannot be used, 2 wrong usage
"""
ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / "docs" / f"{name}.md" for name in ("export", "peers", "training", "your_data")),
    ROOT / "projects/CEASC/README.md",
]
RESULTS = ROOT / "results" / "bench"
MARKED = re.compile(r"(<!-- table: (\S+) (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SIDES = {
    "eager": "the model itself",
    "eager-folded": "the model, norms folded",
    "eager-bf16": "the model under bfloat16 autocast",
    "onnx": "onnx",
    "onnx-sparse": "onnx `--sparse`",
    "onnx-sparse-int8": "onnx `--sparse --int8`",
    "openvino-sparse": "openvino `--sparse`",
    "openvino-sparse-int8": "openvino `--sparse --int8`",
    "onnx-int8": "onnx `--int8`",
    "torch": "torch (`.pt2`)",
    "torch-sparse": "torch (`.pt2`) `--sparse`",
    "openvino": "openvino",
    "openvino-bf16": "openvino, bfloat16 computation",
    "openvino-int8": "openvino `--int8`",
}


def differences(rows: Sequence[dict[str, Any]]) -> str:
    """Table of what exported files detect beside their models."""
    lines = [
        [
            _model(row),
            SIDES[row["side"]],
            row["detections"],
            row["matched"],
            row["unmatched"],
            f"{row['max_box_diff']:.0e}",
            f"{row['max_score_diff']:.0e}",
            f"{row['ms'] * row['ratio']:.0f}",
            f"{row['ms']:.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
        if not row["side"].startswith("eager")
    ]
    names = ["model", "file", "detections", "found again", "without partner", "px", "score"]
    return _table([*names, "model's ms", "ms", "times as fast"], lines)


def speed(rows: Sequence[dict[str, Any]]) -> str:
    """Table of latency, size and, where it was measured, AP of every side."""
    scored = any("AP" in row for row in rows)
    lines = [
        [
            _model(row),
            SIDES[row["side"]],
            f"{row['ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['megabytes']:.1f}" if row["megabytes"] else "",
            *(f"{row[key]:.2f}" for key in ("AP", "AP50") if scored),
        ]
        for row in rows
    ]
    return _table(["model", "side", "ms an image", "times as fast", "MB", *(("AP", "AP50") if scored else ())], lines)


def peers(rows: Sequence[dict[str, Any]]) -> str:
    """Table of latencies, the fastest model first; what counts is the faster runtime of each in float32."""
    runtimes = [
        runtime
        for runtime in ("PyTorch", "PyTorch, bfloat16", "ONNX Runtime")
        if any(runtime in row["runtimes_ms"] for row in rows)
    ]
    lines = []
    for row in sorted(rows, key=lambda row: row["ms"]):
        adds, times = row.get("multiply_adds_G"), row["runtimes_ms"]
        lines.append(
            [
                _model(row) if row["whose"] == "ours" else row["model"],
                row["whose"],
                f"{row['parameters_M']:.2f}",
                "" if adds is None else f"{adds:.1f}",
                *(f"{times[runtime]:.0f}" if runtime in times else "" for runtime in runtimes),
                f"**{row['ms']:.0f}**",
            ]
        )
    titles = [f"{runtime}, ms" for runtime in runtimes]
    return _table(["model", "whose", "M parameters", "G multiply-adds", *titles, "faster, ms"], lines)


LEARNED = 1.0  # AP of the best cell, below which shares of it say nothing


def advice(rows: Sequence[dict[str, Any]]) -> str:
    """Table of AP a data set: the cells of the grid that were tried, and proposals with their share of the best."""
    names = list(dict.fromkeys(row["cell"] for row in rows))
    proposals = sorted((name for name in names if name.startswith("proposal")), key=len, reverse=True)
    grid = [name for name in names if name not in proposals]
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        found = {row["cell"]: row["AP"] for row in of_data}
        best = max(found.get(name, 0.0) for name in grid)
        figures = {name: f"{ap:.1f}" for name, ap in found.items()}
        if best >= LEARNED:
            figures |= {name: f"{found[name]:.1f} ({found[name] / best:.0%})" for name in proposals if name in found}
        lines.append([data, of_data[0]["images"], *(figures.get(name, "") for name in (*grid, *proposals))])
    return _table(["data", "images judged", *grid, *proposals], lines)


def heads(rows: Sequence[dict[str, Any]]) -> str:
    """Table of how many times faster sparse heads are than dense ones, with the bounds of their multiply-adds."""
    lines: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(("x".join(map(str, row["size"])), row["channels"], row["layers"]), {})
        line[f"{row['masks']} active"] = f"{row['head_ratio']:.2f} ({row['head_bound']:.1f})"
        line["dense, ms"] = f"{1e3 * row['head_dense_s']:.0f}"
    shares = list(dict.fromkeys(share for line in lines.values() for share in line))
    return _table(
        ["image, px", "channels", "layers", *shares],
        [[*head, *(line.get(share, "") for share in shares)] for head, line in lines.items()],
    )


def classes(rows: Sequence[dict[str, Any]]) -> str:
    """Table of AP and, where they are known, of AP50 by class, a line a training."""
    names = list(rows[0].get("AP50_by_class", {}))
    lines = [
        [
            row["training"],
            *(f"{value:.1f}" for value in (row["AP"], row["AP50"], *(row["AP50_by_class"][name] for name in names))),
        ]
        for row in rows
    ]
    return _table(["training", "AP", "AP50", *(f"AP50 {name}" for name in names)], lines)


KINDS = {
    "differences": differences,
    "speed": speed,
    "peers": peers,
    "heads": heads,
    "advice": advice,
    "classes": classes,
}


def _model(row: dict[str, Any]) -> str:
    """Name of the recipe, which is a link where just one of ours has it."""
    name = row["config"] if "config" in row else row["model"]
    found = list(ROOT.glob(f"configs/**/{name}.yaml"))
    return f"[{name}](../{found[0].relative_to(ROOT)})" if len(found) == 1 else name


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    return tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)


def page(text: str, results: Path, folder: Path) -> str:
    """The page, which lies in a folder, with its tables made anew.

    Raises:
        ValueError: a mark names an unknown kind, or a file lacks a figure.
        OSError: a file that a mark names cannot be read.
    """

    def made(match: re.Match[str]) -> str:
        start, file, kind, end = match.groups()
        if kind not in KINDS:
            raise ValueError(f"<!-- table: {file} {kind} -->: expected one of {', '.join(KINDS)}.")
        try:
            content = json.loads((results / file).read_text(encoding="utf-8"))
            table = KINDS[kind](content["rows"])
            where = f"{content['machine']}; {content['date']}, commit {content['commit']}"
        except (KeyError, TypeError) as error:
            raise ValueError(f"{results / file}: expected what the benchmark's --json writes ({error!r}).") from error
        link = Path(os.path.relpath(RESULTS / file, folder)).as_posix()
        return f"{start}\n{table}\n\n[{file}]({link}): {where}.\n\n{end}"

    return MARKED.sub(made, text)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    stale = []
    for path in args.page:
        try:
            current = path.read_text(encoding="utf-8")
            text = page(current, args.results, path.parent)
        except (OSError, ValueError) as error:
            print(f"make_bench_tables: {error}", file=sys.stderr)
            return 1
        if text != current:
            stale.append(path)
            if not args.check:
                with replacing(path) as new:
                    new.write_text(text, encoding="utf-8")
                print(f"Wrote {path}")
    if args.check and stale:
        print(f"{', '.join(map(str, stale))}: not up to date; run python dev/make_bench_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
