"""Readers, box functions, assigners and converters: whatever they get, a value or an error of ours."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

from d2_ext.checkpoint import SOURCES, convert
from d2_ext.checkpoint.safe import read_checkpoint
from d2_ext.config.checks import RULES
from d2_ext.errors import CheckpointError, ConfigError
from d2_ext.modeling.assigners.atss import assign_atss
from d2_ext.modeling.assigners.best_anchor import assign_best_anchor, square_anchors
from d2_ext.modeling.assigners.center_sampling import assign_by_size, size_ranges
from d2_ext.modeling.assigners.max_iou import MaxIoUAssigner
from d2_ext.modeling.assigners.nearest_center import assign_nearest_center
from d2_ext.modeling.assigners.poto import assign_argmax, assign_one_to_one, poto_quality
from d2_ext.modeling.box_codec import centerness, decode_ltrb, encode_ltrb, make_point_grid
from d2_ext.modeling.ignore import boxes_in_regions
from d2_ext.modeling.losses.iou import box_giou_loss, elementwise_iou, pairwise_iou
from d2_ext.runs.config import load_run_config

import numpy as np
import pytest
import torch
from faults.config_cases import FCOS
from faults.data_cases import write_honest
from fuzz.targets import TARGETS, coco_json, corpus, run, torch_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.scripts import ROOT, child_environment, run_python

FEW = settings(max_examples=30, deadline=None)
GRID = make_point_grid([(4, 6), (2, 3)], [8, 16])
ANCHORS = square_anchors(GRID, [32, 64])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SIDE = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 8.0, 1e-6])


@st.composite
def boxes(draw: st.DrawFn) -> Tensor:
    """(M, 4) XYXY px, M from 0 to 5: without area, outside, huge; never with a negative side."""
    rows = draw(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), max_size=5))
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A json that is in order."""
    return write_honest(tmp_path_factory.mktemp("honest") / "data")


@FEW
@given(data=st.data())
def test_a_json_with_any_value_anywhere(honest: dict[str, Any], data: st.DataObject) -> None:
    content = copy.deepcopy(honest)
    rows = data.draw(st.sampled_from(sorted(content)))
    index = data.draw(st.integers(0, len(content[rows]) - 1))
    place = data.draw(st.sampled_from([None, *sorted(content[rows][index])]))
    value = data.draw(JSON)
    if place is None:
        content[rows][index] = value
    else:
        content[rows][index][place] = value
    run(coco_json, json.dumps(content).encode())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_readers_of_changed_bytes(name: str) -> None:
    target, seeds = TARGETS[name][0], corpus(name)
    for seed in seeds:
        run(target, seed)

    @FEW
    @given(data=st.data())
    def change(data: st.DataObject) -> None:
        content = bytearray(data.draw(st.sampled_from(seeds)))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            content[start : start + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
        run(target, bytes(content))

    change()


@FEW
@given(content=st.binary(max_size=200))
def test_readers_of_any_bytes(content: bytes) -> None:
    for target, _ in TARGETS.values():
        run(target, content)


def test_checkpoints_of_changed_bytes(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.arange(6.0)}}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()

    @FEW
    @given(places=st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8), value=st.integers(0, 255))
    def change(places: list[int], value: int) -> None:
        content = bytearray(whole)
        for place in places:
            content[place] = value
        run(torch_file, bytes(content))

    change()


@FEW
@given(content=JSON)
def test_pickles_of_plain_values_come_back(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pickle") / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    assert repr(read_checkpoint(str(path))) == repr(content)


@FEW
@given(key=st.sampled_from(sorted(RULES)), value=st.text(max_size=12) | st.from_type(float).map(str) | JSON.map(repr))
def test_options_with_any_value(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        assert load_run_config(ROOT / "configs" / FCOS, [key, value]).is_frozen()


@FEW
@given(
    source=st.sampled_from(sorted(name for name, source in SOURCES.items() if not source.needs_cfg)),
    names=st.lists(st.text("abc.019_weightbias", max_size=20), max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=4),
)
def test_converters_of_any_names_and_shapes(source: str, names: list[str], shape: list[int]) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(convert({name: np.zeros(shape) for name in names}, source=source), dict)


@FEW
@given(first=boxes(), second=boxes())
def test_box_functions_stay_in_their_range(first: Tensor, second: Tensor) -> None:
    count = min(len(first), len(second))
    first_pairs, second_pairs = first[:count], second[:count]
    iou = elementwise_iou(first_pairs, second_pairs)
    assert iou.shape == (count,)
    assert ((iou >= 0) & (iou <= 1 + 1e-5)).all()
    assert pairwise_iou(first, second).shape == (len(first), len(second))
    giou = box_giou_loss(first_pairs, second_pairs)
    assert ((giou >= -1e-4) & (giou <= 2 + 1e-4)).all()
    assert boxes_in_regions(first, second).shape == (len(first),)
    points = (first[:, :2] + first[:, 2:]) / 2
    distances = encode_ltrb(points, first)
    torch.testing.assert_close(decode_ltrb(points, distances), first, atol=1e-2, rtol=1e-5)
    center = centerness(distances[(distances > 0).all(dim=1)])  # of points inside their boxes, as it asks for
    assert ((center >= 0) & (center <= 1 + 1e-3)).all()


@FEW
@given(truth=boxes(), seed=st.integers(0, 99))
def test_assigners_give_every_location_a_box_or_none(truth: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, locations = len(truth), len(GRID.points)
    logits, distances = (
        torch.randn(locations, 3, generator=generator),
        torch.rand(locations, 4, generator=generator) * 64,
    )
    classes = torch.zeros(count, dtype=torch.long)
    ranges = size_ranges([32], 2)
    candidates = poto_quality(GRID, truth, classes, logits, None, distances, alpha=0.8, radius=1.5)
    for matched in (
        assign_by_size(GRID, truth, ranges),
        assign_atss(ANCHORS, GRID.counts, truth),
        assign_atss(ANCHORS, GRID.counts, truth, min_distance=0.0),
        assign_nearest_center(GRID, truth, ranges),
        assign_best_anchor(ANCHORS, truth),
        assign_one_to_one(candidates, count, locations),
        assign_argmax(candidates, count, locations),
    ):
        assert matched.shape == (locations,)
        assert matched.dtype == torch.int64
        assert ((matched >= -1) & (matched < max(count, 1))).all()
    index, label = MaxIoUAssigner(negative_iou=0.4, positive_iou=0.5)(truth, ANCHORS)
    assert index.shape == label.shape == (locations,)
    assert ((index >= 0) & (index < max(count, 1))).all()


def test_a_second_of_coverage_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:  # not imported here: its runtime does not bear all that tests load
        pytest.skip("atheris is not installed")
    # Without the variable: the page keeps the figures of minutes.
    quiet = {name: value for name, value in child_environment().items() if name != "D2_EXT_FIGURES"}
    script = ROOT / "tests/fuzz/coverage_guided.py"
    done = run_python(script, "--seconds", "1", "--target", "coco_json", cwd=tmp_path, env=quiet)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "no finding" in done.stdout
