"""Printing, checking and flattening of results."""

from __future__ import annotations

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["print_csv_format", "verify_results", "flatten_results_dict"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task in two comma-separated lines, to be pasted into a spreadsheet.

    Args:
        results: task to its metrics; metrics with a ``-`` in the name (those of single classes) are left out.
    """
    assert isinstance(results, Mapping) or not results, f"expected a dict of tasks, got {results!r}"
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS`` and end the process with status 1 if one is off.

    Args:
        cfg: its expectations are rows of task, metric, value, tolerance.
        results: task to its metrics.

    Returns:
        True: everything is as expected, or nothing was.
    """

    def as_expected(task: str, metric: str, value: float, tolerance: float) -> bool:
        actual = results[task].get(metric)
        return actual is not None and math.isfinite(actual) and abs(actual - value) <= tolerance

    expected = cfg.TEST.EXPECTED_RESULTS
    if not all(as_expected(*row) for row in expected):
        logger.error("Result verification failed!")
        logger.error("Expected: %s", expected)
        logger.error("Actual: %s", pprint.pformat(results))
        sys.exit(1)
    if expected:
        logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the keys of nested dicts with slashes.

    Example:
        >>> flatten_results_dict({"bbox": {"AP": 41.0}})
        {'bbox/AP': 41.0}
    """
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": leaf for inner, leaf in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
