"""Counts what the tests of this folder promise, for the page on reliability.

With the environment variable ``D2_EXT_FIGURES`` naming a file, a line of json per promise is appended to it at the end:
``{"promise", "test", "cases", "passed", "figures"}``. ``tools/make_reliability_page.py`` makes the page of them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

import pytest

BAD_INPUT = "tests/faults/test_bad_input.py"
EXECUTED = "tests/faults/test_nothing_executed.py"
PROPERTIES = "tests/faults/test_properties.py"
UPLOAD = "tests/demo/test_upload.py"
DEMO = "tests/tools/test_demo.py::test_no_path_of_a_client_reaches_a_file"
# Test, or file of tests -> what it proves.
PROMISES = {
    f"{BAD_INPUT}::test_a_config_that_cannot_work_is_refused": "Configs that cannot work are refused before a run",
    f"{BAD_INPUT}::test_data_that_cannot_be_trained_on_is_refused": "Broken data sets and pictures are refused",
    f"{BAD_INPUT}::test_an_unusual_picture_is_accepted": "Unusual but usable pictures are accepted",
    f"{BAD_INPUT}::test_a_checkpoint_that_cannot_be_used_is_refused": "Unfit or unsafe checkpoints are refused",
    f"{BAD_INPUT}::test_a_wrong_command_line_is_refused": "Wrong command lines are refused",
    EXECUTED: "Nothing of a config, option, data set, checkpoint or file name is executed",
    PROPERTIES: "Whatever the input, a value or an error of ours",
    UPLOAD: "Web demo: uploads are limited in size and type",
    DEMO: "Web demo: no path of a client reaches the file system",
    "tests/faults/test_soak.py": "Memory, file handles and threads do not grow",
}
_outcomes: dict[str, list[bool]] = defaultdict(list)
_figures: dict[str, dict[str, Any]] = defaultdict(dict)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count one test, once: its call, or a setup that failed."""
    key = next((key for key in PROMISES if report.nodeid.startswith(key)), None)
    if key is not None and (report.when == "call" or (report.when == "setup" and report.failed)):
        _outcomes[key].append(report.passed)
        _figures[key].update(dict(report.user_properties))


def pytest_sessionfinish() -> None:
    """Append the lines."""
    path = os.environ.get("D2_EXT_FIGURES")
    if not path:
        return
    with open(path, "a", encoding="utf-8") as file:
        for key, outcomes in _outcomes.items():
            line = {"promise": PROMISES[key], "test": key, "cases": len(outcomes), "passed": sum(outcomes)}
            file.write(json.dumps({**line, "figures": _figures[key]}) + "\n")
