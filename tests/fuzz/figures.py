"""What the fuzzers append for docs/reliability.md, with the hours of all their runs so far."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parents[2] / "results/bench/reliability.jsonl"


def append_figures(
    promise: str, test: str, cases: int, findings: int, seconds: float, figures: Mapping[str, Any]
) -> None:
    """Append a line to the file that D2_EXT_FIGURES names; cases that ended in a finding did not pass.

    Args:
        promise, test: of the row.
        cases, findings: of this run.
        seconds: that it took; they are added to those of the row so far.
        figures: of this run.
    """
    path = os.environ.get("D2_EXT_FIGURES")
    if not path:
        return
    kept = [json.loads(text) for text in KEPT.read_text(encoding="utf-8").splitlines()]
    hours = sum(line["figures"].get("hours in all", 0) for line in kept if line["promise"] == promise) + seconds / 3600
    figures = {"findings": findings, "hours in all": round(hours, 2), **figures}
    line = {"promise": promise, "test": test, "cases": cases, "passed": cases - findings, "figures": figures}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
