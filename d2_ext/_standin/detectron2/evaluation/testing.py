"""Results: flat, in the log for a spreadsheet, and compared with what is expected."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results in lines that begin with ``copypaste:``: names and values with four digits, separated by commas.

    ``results`` are metrics by task, or numbers. Metrics with ``-`` in their names (such as those of classes) are left
    out.
    """
    assert isinstance(results, Mapping), f"Results have to be a mapping of tasks, not {results!r}."
    for task, found in results.items():
        if not isinstance(found, Mapping):
            logger.info("copypaste: %s=%s", task, found)
            continue
        main = {name: f"{value:.4f}" for name, value in found.items() if "-" not in name}
        for line in (f"Task: {task}", ",".join(main), ",".join(main.values())):
            logger.info("copypaste: %s", line)


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``TEST.EXPECTED_RESULTS``: rows of task, metric, value and how far it may be off.

    Gives True; or SystemExit with code 1, for a metric that is missing, not a number or too far off: the log says
    which. KeyError for a task without results.
    """
    wrong = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results[task].get(metric, math.nan)
        if not abs(actual - expected) <= tolerance:  # NaN is within nothing
            wrong.append(f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}")
    if wrong:
        logger.error("Not the expected results: %s", "; ".join(wrong))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("Results are as TEST.EXPECTED_RESULTS says.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the names of nested results: ``{"bbox": {"AP": 41.2}}`` becomes ``{"bbox/AP": 41.2}``."""
    return dict(_leaves(results, ""))


def _leaves(results: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, found in results.items():
        if isinstance(found, Mapping):
            yield from _leaves(found, f"{path}{name}/")
        else:
            yield f"{path}{name}", found
