"""Results: flat, in the log for a spreadsheet, and compared with what is expected."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results in lines that begin with ``copypaste:``: names and values with four digits, separated by commas.

    Args:
        results: metrics by task, or numbers. Metrics with ``-`` in their names (such as those of classes) are left out.

    Raises:
        AssertionError: for results that are no mapping.
    """
    assert isinstance(results, Mapping), f"Results have to be a mapping of tasks, not {results!r}."
    for task, found in results.items():
        for line in _spreadsheet(task, found):
            logger.info("copypaste: %s", line)


def _spreadsheet(task: str, found: Any) -> list[str]:
    if not isinstance(found, Mapping):
        return [f"{task}={found}"]
    main = {name: f"{value:.4f}" for name, value in found.items() if "-" not in name}
    return [f"Task: {task}", ",".join(main), ",".join(main.values())]


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``TEST.EXPECTED_RESULTS``: rows of task, metric, value and how far it may be off.

    Args:
        cfg: the whole config.
        results: metrics by task.

    Returns:
        True.

    Raises:
        SystemExit: with code 1, for a metric that is missing, not a number or too far off; the log says which.
        KeyError: for a task without results.
    """
    if wrong := list(_disappointments(cfg.TEST.EXPECTED_RESULTS, results)):
        logger.error("Not the expected results: %s", "; ".join(wrong))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("Results are as TEST.EXPECTED_RESULTS says.")
    return True


def _disappointments(rows: Iterable[Any], results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for task, metric, expected, tolerance in rows:
        actual = results[task].get(metric, math.nan)
        if not abs(actual - expected) <= tolerance:  # NaN is within nothing
            yield f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}"


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the names of nested results: ``{"bbox": {"AP": 41.2}}`` becomes ``{"bbox/AP": 41.2}``."""
    return dict(_leaves(results, ""))


def _leaves(results: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, found in results.items():
        if isinstance(found, Mapping):
            yield from _leaves(found, f"{path}{name}/")
        else:
            yield f"{path}{name}", found
