"""Write docs/reliability.md: what is promised, which test proves it, and the figures of the last run.

The tests append lines of json to the file that the environment variable D2_EXT_FIGURES names; the soak has a file of
its own. Of several lines about one promise and test, the last one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser
from d2_ext.files import replacing

EXAMPLES = """examples:
  the figures of a run of the tests:
    D2_EXT_FIGURES=new.jsonl pytest tests/faults tests/engine; python dev/make_reliability_page.py --figures new.jsonl
  how much of the readers, checkpoint and export code its tests run (pip install coverage):
    coverage run --branch --source d2_ext -m pytest tests/checkpoint tests/data tests/export tests/test_images.py \\
        tests/test_files.py tests/test_model_zoo.py tests/faults/test_bad_input.py tests/cli/test_c*_dataset.py
    coverage json; python dev/make_reliability_page.py --coverage coverage.json
  fail if the page is not that of the figures that are kept:
    python dev/make_reliability_page.py --check

exit codes: 0 done, 1 the page is not up to date or figures cannot be used, 2 wrong usage
"""
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "results" / "bench" / "reliability.jsonl"
SOAK = ROOT / "results" / "bench" / "soak.json"
FAULTS = ROOT / "results" / "reliability" / "faults.json"
COVERAGE = ROOT / "results" / "reliability" / "coverage.json"
# What strangers' files meet: part of the code, and what it reads or writes.
COVERED = {
    "d2_ext/data/formats/": "annotations",
    "d2_ext/images.py": "images",
    "d2_ext/files.py": "YAML, temporary files",
    "d2_ext/checkpoint/": "checkpoints",
    "d2_ext/export/": "exported files",
}
COVERAGE_FIELDS = ("what", "lines", "branches", "percent", "least")
FIELDS = ("promise", "test", "cases", "passed")
INTRODUCTION = """# Reliability

What this project promises, the test of each promise, and what its last run found. Written by
`python dev/make_reliability_page.py` from the output of the tests; do not edit it. The cases of bad
input are listed in [Bad input](bad_input.md). A row is of the last time that its test was run: for tests
with `D2_EXT_FIGURES=new.jsonl pytest TEST`, which belong to the suite or to `pytest -m long`; others have
their own command. A test of the suite fails if a test that reports to this page has no row, or a case of
a row did not pass. What GPUs leave open is told in [Determinism](determinism.md).

| promise | test | cases | passed | figures |
|---|---|---|---|---|
"""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The last line of each promise and test, in the order of their first.

    Raises:
        ValueError: naming the line that lacks something.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            lines[line["promise"], line["test"]] = {
                **{field: line[field] for field in FIELDS},
                "figures": line.get("figures", {}),
            }
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an object with {', '.join(FIELDS)} ({error!r})."
            ) from error
    return list(lines.values())


def page(
    lines: Sequence[Mapping[str, Any]],
    soak: Mapping[str, Any] | None,
    faults: Mapping[str, Any] | None = None,
    coverage: Mapping[str, Any] | None = None,
) -> str:
    """The whole page."""
    rows = "".join(
        f"| {line['promise']} | `{line['test']}` | {line['cases']} | {line['passed']} | {_figures(line['figures'])} |\n"
        for line in lines
    )
    sections = ((_faults, faults), (_coverage, coverage), (_soak, soak))
    return INTRODUCTION + rows + "".join(section(found) for section, found in sections if found)


def _figures(figures: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_value(value)}" for name, value in figures.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)


def _faults(faults: Mapping[str, Any]) -> str:
    rows = faults["rows"]
    total = {key: sum(row[key] for row in rows) for key in ("calls", "failures", "as_promised")}
    text = "".join(
        f"| {row['flow']} | {row['kind']} | {row['calls']} | {row['failures']} | {row['as_promised']} | "
        f"{_value(row['errors'])} |\n"
        for row in rows
    )
    return (
        "\n## Every failure, not twenty\n\n`python dev/sweep_faults.py`: a flow is run once for each of its calls of\n"
        "the file system (or allocations), which fails; or the process is killed there. As promised means: one error\n"
        "that names the file or says that memory ran out (or the run goes on, and ends with all it should; a\n"
        "prediction with all but the image that memory did not suffice for, which it lists with this reason), no half\n"
        "file under its final name, no temporary file, what was there before as it was, and the next run ends with\n"
        "the files of an undisturbed run, checkpoints bit for bit. FULL: no space from that call on; KILL: half of a\n"
        "write is on the disk. Calls of Python are seen, not those of native writers (videos, `.pt2`, OpenVINO). Of\n"
        "flows with hundreds of calls, some are taken, evenly spread.\n\n"
        "| flow | what fails | calls | failures | as promised | how |\n|---|---|---|---|---|---|\n"
        + text
        + f"| together | | {total['calls']} | {total['failures']} | {total['as_promised']} | |\n"
    )


def covered(report: Mapping[str, Any]) -> dict[str, Any]:
    """Lines and branches of each part of ``COVERED``, and its file with the least, from what ``coverage json`` writes.

    Percentages are those of coverage: lines and branches that were run, of all lines and branches.
    """
    rows = []
    for part, what in COVERED.items():
        files = {name: f["summary"] for name, f in report["files"].items() if name.startswith(part)}
        keys = ("num_statements", "num_branches", "covered_lines", "covered_branches")
        lines, branches, *taken = (sum(f[key] for f in files.values()) for key in keys)
        least = min(files, key=lambda name: files[name]["percent_covered"])
        percent = round(100 * sum(taken) / (lines + branches), 1)
        row = {"part": part, "what": what, "lines": lines, "branches": branches, "percent": percent}
        rows.append({**row, "least": f"{Path(least).name} {files[least]['percent_covered']:.1f}"})
    return {"rows": rows}


def _coverage(coverage: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| `{row['part']}` | " + " | ".join(str(row[key]) for key in COVERAGE_FIELDS) + " |\n"
        for row in coverage["rows"]
    )
    return (
        "\n## Code that reads and writes files\n\nHow much of it its tests run: lines and branches taken, of all. The\n"
        "command is in `python dev/make_reliability_page.py --help`.\n\n"
        "| code | for | lines | branches | % run | file with the least |\n|---|---|---|---|---|---|\n" + rows
    )


def _soak(soak: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {name} | {phase['steps']} | {phase['seconds']} | {phase['growth']['start_mb']:.0f} | "
        f"{phase['growth']['end_mb']:.0f} | {phase['growth']['memory_kb_per_step']:.2f} | "
        f"{phase['growth']['handles']:g} | {phase['growth']['threads']:g} |\n"
        for name, phase in soak["phases"].items()
    )
    return (
        "\n## Held under load\n\n`python benchmarks/soak.py --json results/bench/soak.json`: resident memory, file\n"
        "handles and threads of the process, from the second quarter of the steps to the last.\n\n"
        "| phase | steps | seconds | MB at first | MB at the end | kB a step | handles | threads |\n"
        "|---|---|---|---|---|---|---|---|\n" + rows
    )


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--figures", type=Path, help="lines of the tests; they are added to those that are kept")
    parser.add_argument("--coverage", type=Path, help="what `coverage json` has written; its figures are kept")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    args = argument_parser().parse_args(argv)
    try:
        lines = _merged(args.figures)
        if args.coverage:
            figures = covered(json.loads(args.coverage.read_text(encoding="utf-8")))
            with replacing(COVERAGE) as path:
                path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = page(lines, *(json.loads(file.read_text()) if file.is_file() else None for file in (SOAK, FAULTS, COVERAGE)))
    if args.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not current:
            print(f"error: {PAGE} is not up to date. Run python dev/make_reliability_page.py", file=sys.stderr)
        return int(not current)
    for file, content in ((KEPT, "".join(json.dumps(line) + "\n" for line in lines)), (PAGE, text)):
        with replacing(file) as path:
            path.write_text(content, encoding="utf-8")
    print(f"Wrote {PAGE} with {len(lines)} promises")
    return 0


def _merged(figures: Path | None) -> list[dict[str, Any]]:
    """Kept lines, with the new ones in their places."""
    kept = read_lines(KEPT) if KEPT.is_file() else []
    merged = {(line["promise"], line["test"]): line for line in [*kept, *(read_lines(figures) if figures else [])]}
    return list(merged.values())


if __name__ == "__main__":
    sys.exit(main())
