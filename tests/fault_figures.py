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
            file.write(json.dumps({"promise": promise, "cases": cases, "passed": passed, **more}) + "\n")
