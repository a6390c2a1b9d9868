"""Figures for docs/reliability.md: one JSON line per promise, in the file that D2_EXT_FIGURES names."""

from __future__ import annotations

import json
import os
from typing import Any


def report(promise: str, cases: int, passed: int, **more: Any) -> None:
    """Append a line, if somebody wants it."""
    path = os.environ.get("D2_EXT_FIGURES")
    if path:
        with open(path, "a") as file:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]  # without "(call)"
            line = {"promise": promise, "test": test, "cases": cases, "passed": int(passed), "figures": more}
            file.write(json.dumps(line) + "\n")
