"""Figures for docs/reliability.md: one JSON line per promise, in the file that the variable D2_EXT_FIGURES names.

``{"promise", "test", "cases", "passed", "figures"}``; ``dev/make_reliability_page.py`` makes the page of them. A test
reports its own line, or a whole file of tests is counted: ``COUNTED`` says which. ``tests/conftest.py`` has the hooks.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

import pytest

BAD_INPUT = "tests/faults/test_bad_input.py"
# Test, or file of tests -> what it proves.
COUNTED = {
    f"{BAD_INPUT}::test_a_config_that_cannot_work_is_refused": "Configs that cannot work are refused before a run",
    f"{BAD_INPUT}::test_data_that_cannot_be_trained_on_is_refused": "Broken data sets and images are refused",
    f"{BAD_INPUT}::test_an_unusual_image_is_accepted": "Unusual but usable images are accepted",
    f"{BAD_INPUT}::test_a_checkpoint_that_cannot_be_used_is_refused": "Unfit or unsafe checkpoints are refused",
    f"{BAD_INPUT}::test_a_wrong_command_line_is_refused": "Wrong command lines are refused",
    "tests/faults/test_nothing_executed.py": (
        "Nothing of a config, option, data set, checkpoint or file name is executed"
    ),
    "tests/export/test_strangers.py": "Exported files from strangers are refused before a runtime opens them, or named",
    "tests/projects/test_onnx_predict.py": "The script without torch refuses files from strangers in one line each",
    "tests/runs/test_lock.py": "Of two runs into one folder the second is refused; stale locks are replaced",
    "tests/faults/test_properties.py": "Whatever the input, a value or an error of ours",
    "tests/demo/test_upload.py": "Web demo: uploads are limited in size and type",
    "tests/cli/test_demo.py::test_no_path_of_a_client_reaches_a_file": (
        "Web demo: no path of a client reaches the file system"
    ),
    "tests/runs/test_record.py::test_the_switch_allows_deterministic_algorithms_only": (
        "A switch allows deterministic algorithms only"
    ),
    "tests/faults/test_soak.py": "Memory, file handles and threads do not grow",
}
_outcomes: dict[str, list[bool]] = defaultdict(list)
_figures: dict[str, dict[str, Any]] = defaultdict(dict)


def report(promise: str, cases: int, passed: int, **more: Any) -> None:
    """Append the line of the running test, if somebody wants it."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]  # without "(call)"
    _append(promise, test, cases, int(passed), more)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count one test, once: its call, or a setup that failed."""
    key = next((key for key in COUNTED if report.nodeid.startswith(key)), None)
    if key is not None and (report.when == "call" or (report.when == "setup" and report.failed)):
        _outcomes[key].append(report.passed)
        _figures[key].update(dict(report.user_properties))


def pytest_sessionfinish() -> None:
    """Append the lines of the counted tests."""
    for key, outcomes in _outcomes.items():
        _append(COUNTED[key], key, len(outcomes), sum(outcomes), _figures[key])


def _append(promise: str, test: str, cases: int, passed: int, figures: dict[str, Any]) -> None:
    path = os.environ.get("D2_EXT_FIGURES")
    if path:
        line = {"promise": promise, "test": test, "cases": cases, "passed": passed, "figures": figures}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
