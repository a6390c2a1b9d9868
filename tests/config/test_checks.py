"""Ranges of values are checked once, when a config is loaded: what is wrong is named before anything is built."""

from __future__ import annotations

from typing import Any

from d2_ext.config.checks import check_config, value_of
from d2_ext.config.load import load_config, merge_config
from d2_ext.errors import ConfigError

import pytest

RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.DEVICE", "cpu"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("TEST.TILE.SIZE", value) for value in (-1, -5)),
        *(("TEST.TILE.OVERLAP", value) for value in (1.0, -0.1, float("nan"))),
        ("TEST.TILE.BATCH_SIZE", 0),
        ("TEST.TILE.MERGE_IOU", 0.0),
        *(("TEST.TILE.SELECT", value) for value in (1, -2)),
        *(("TEST.TILE.SELECT_SCORE", value) for value in (-0.1, 1.5, float("nan"))),
        *(("SOLVER.EMA.DECAY", value) for value in (1.0, -0.1)),
        ("SOLVER.EMA.WARMUP_ITERS", -1),
        ("SOLVER.ACCUMULATE_BATCHES", 0),
        ("TEST.MASK_PERIOD", -1),
        *(("DATASETS.HOLD_OUT", value) for value in (0.0, 1.0)),
    ],
)
def test_a_value_out_of_its_range_is_named(key: str, value: Any) -> None:
    cfg = merge_config("", RETINANET)
    section, _, leaf = key.rpartition(".")
    value_of(cfg, section)[leaf] = value
    with pytest.raises(ConfigError, match=rf"{key} is {value}; expected a "):
        check_config(cfg)


def test_early_stopping_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match=r"TEST\.EVAL_PERIOD is 0"):
        load_config("", [*RETINANET, "TEST.BEST.PATIENCE", "2"])


@pytest.mark.parametrize(
    ("detector", "options", "message"),
    [
        ("IgnoreAwareRetinaNet", ["TEST.AUG.ENABLED", "True"], r"TEST\.AUG\.ENABLED is True, .* would do nothing"),
        ("FCOS", ["VIS_PERIOD", "100"], "VIS_PERIOD is 100, but FCOS draws nothing"),
        ("FCOS", ["MODEL.FPN.SEPARABLE", "True"], r"MODEL\.FPN\.SEPARABLE is True, but build_\w+ does not read it"),
    ],
)
def test_keys_of_detectron2_that_nobody_reads_are_refused(detector: str, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("", ["MODEL.META_ARCHITECTURE", detector, *options])
