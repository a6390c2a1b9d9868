"""Every failure of the file system: see :mod:`faults.sweep`; ``dev/sweep_faults.py`` runs all.

What runs here are some of the points.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from faults.sweep import Job, Outcome, sweep

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are named by /proc")
SAMPLE = [
    Job("conversion of data, copied", every=9),
    Job("conversion of data over an earlier one", every=11),
    Job("conversion of weights: .safetensors", every=2),
    Job("prediction: drawings, masks, tables", every=16, offset=3),
    Job("training", every=230, offset=40),
    Job("training", "kill -9", every=80, offset=9),
]
MANY = [
    *(Job("training", kind, every) for kind, every in (("calls", 24), ("kill -9", 14))),
    *(Job("resuming", kind, every) for kind, every in (("calls", 30), ("kill -9", 20))),
    Job("training anew", every=8, offset=2),
    Job("evaluation", every=48, offset=24),
    *(Job(flow, "memory", every) for flow, every in (("training", 60), ("evaluation", 40))),
    *(Job(f"prediction{more}", every=5) for more in (": drawings, masks, tables", " on tiles")),
    Job("data generation", every=4),
    Job("conversion of data, copied", every=1),
    Job("conversion of data over an earlier one", every=1),
    *(Job(f"conversion of weights: {suffix}", every=1) for suffix in (".pth", ".safetensors")),
    Job("export: torch", every=2),
    Job("report", every=4),
]


def problems_of(tmp_path: Path, jobs: list[Job]) -> tuple[int, list[Outcome]]:
    """How many failures there were, and those that led to something else than what is promised."""
    count, bad = 0, []

    def tell(job: Job, of: int, outcomes: list[Outcome]) -> None:
        nonlocal count
        assert outcomes, f"{job} has no point among {of}"
        count += len(outcomes)
        bad.extend(outcome for outcome in outcomes if outcome.problems)

    sweep(tmp_path / "sweep", jobs, tell)
    return count, bad


def test_a_sample_of_failures_ends_as_promised(tmp_path: Path) -> None:
    count, bad = problems_of(tmp_path, SAMPLE)
    assert not bad, bad
    assert count > 12


@pytest.mark.long
def test_more_failures_end_as_promised(tmp_path: Path) -> None:
    count, bad = problems_of(tmp_path, MANY)
    assert not bad, bad
    assert count > 100
