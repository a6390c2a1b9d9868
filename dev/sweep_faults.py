"""Let every call of the file system and every allocation fail, and write results/reliability/faults.json.

Each flow (training, resuming, prediction, export, ...) is run once for each of its calls, which fails, or at which the
process is killed; what it leaves and the next run are looked at (tests/faults/sweep.py). Results join those that are
there, so that it can be run in pieces; dev/make_reliability_page.py makes the table of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from d2_ext.cli.command import command_parser, number_in  # noqa: E402
from d2_ext.errors import ConfigError, did_you_mean  # noqa: E402
from d2_ext.files import replacing  # noqa: E402

EXAMPLES = """examples:
  all of them, one error for each call in turn, for an hour:
    python dev/sweep_faults.py
  every error that each call can meet, of two flows:
    python dev/sweep_faults.py --flows evaluation report --all-errors

exit codes: 0 all failures ended as promised, 1 some did not, 2 wrong usage
"""
RESULTS = ROOT / "results" / "reliability" / "faults.json"
KILLED = ("training", "resuming", "training anew")
IN_MEMORY = (*KILLED[:2], "evaluation", "prediction: drawings, masks, tables", "prediction on tiles", "report")
FLOWS = (
    *("training", "resuming", "training anew", "evaluation"),
    *("prediction: drawings, masks, tables", "prediction on tiles"),
    *("export: onnx", "export: torch", "export: openvino", "data generation"),
    *("conversion of data, copied", "conversion of data over an earlier one"),
    *("conversion of weights: .pth", "conversion of weights: .safetensors", "report"),
)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--flows", nargs="+", metavar="NAME", default=FLOWS, help="all if not given")
    parser.add_argument(
        "--kinds", nargs="+", choices=("calls", "memory", "kill -9"), default=("calls", "memory", "kill -9")
    )
    parser.add_argument("--all-errors", action="store_true", help="each call with every error, not one in turn")
    parser.add_argument("--every", type=number_in(int, 1), default=1, help="take one of so many points (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="json file (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    from faults.sweep import Job, Outcome, sweep

    args = argument_parser().parse_args(argv)
    for name in args.flows:
        if name not in FLOWS:
            print(
                f"error: {ConfigError(f'--flows: {name!r} is not known. {did_you_mean(name, FLOWS)}')}", file=sys.stderr
            )
            return 2
    jobs = [
        Job(flow, kind, args.every, all_errors=args.all_errors)
        for flow in args.flows
        for kind in args.kinds
        if kind == "calls" or flow in (KILLED if kind == "kill -9" else IN_MEMORY)
    ]
    bad = 0

    def tell(job: Job, points: int, outcomes: list[Outcome]) -> None:
        nonlocal bad
        failed = [outcome for outcome in outcomes if outcome.problems]
        bad += len(failed)
        calls = len({outcome.point.number for outcome in outcomes})
        print(
            f"{job.flow}, {job.kind}: {len(outcomes)} failures at {calls} calls, {len(failed)} not as promised",
            flush=True,
        )
        for outcome in failed:
            call = outcome.point.call
            print(
                f"  {outcome.point.number} {call.kind} {call.path} {outcome.point.error}: {outcome.problems}",
                flush=True,
            )
        kinds = Counter(outcome.point.error for outcome in outcomes)
        row = {"flow": job.flow, "kind": job.kind, "calls": calls, "failures": len(outcomes)}
        _add(args.output, {**row, "as_promised": len(outcomes) - len(failed), "errors": dict(sorted(kinds.items()))})

    with tempfile.TemporaryDirectory(prefix="d2_ext_faults_") as folder:
        sweep(Path(folder) / "sweep", jobs, tell)
    return int(bad > 0)


def _add(path: Path, row: dict[str, Any]) -> None:
    """Put a row in its place."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    kept = [r for r in rows if (r["flow"], r["kind"]) != (row["flow"], row["kind"])]
    kept.append({**row, "date": today, "commit": commit.stdout.strip()})
    order = {
        (flow, kind): n for n, (flow, kind) in enumerate((f, k) for k in ("calls", "memory", "kill -9") for f in FLOWS)
    }
    kept.sort(key=lambda r: order[r["flow"], r["kind"]])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"rows": kept}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
