"""Every row of the table of bad input: one clear message, the exit code, no traceback, nothing left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import d2_ext
from d2_ext.config.checks import RULES, value_of
from d2_ext.data.mapper import CheckedMapper
from d2_ext.data.records import check_records, load_records

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from faults.case import Case
from faults.checkpoint_cases import CHECKPOINT_CASES, PROOF
from faults.command_cases import COMMAND_CASES
from faults.config_cases import CONFIG_CASES
from faults.data_cases import IMAGE_CASES, JSON_CASES, TEXT_CASES
from faults.runs import (
    base_config,
    refusal_problems,
    register_case,
    run_checkpoint,
    run_command,
    run_config,
    run_data,
)
from faults.tool_cases import TOOL_CASES, write_given
from faults.write_page import GROUPS, PAGE, page

from helpers.scripts import ROOT


def _left(folder: Path) -> list[str]:
    """Files of the run folder, which must not exist yet."""
    run = folder / "run"
    return [str(p.relative_to(folder)) for p in run.rglob("*")] or (["run"] if run.exists() else [])


@pytest.mark.parametrize("case", CONFIG_CASES, ids=lambda case: case.name)
def test_a_config_that_cannot_work_is_refused(case: Case, tmp_path: Path) -> None:
    code, out, err = run_config(case, tmp_path)
    problems = refusal_problems(case, code, out, err, _left(tmp_path))
    assert not problems, problems


@pytest.fixture
def name() -> Iterator[str]:
    """Of a data set that is forgotten after the test."""
    yield "bad_input"
    if "bad_input" in DatasetCatalog:
        DatasetCatalog.remove("bad_input")
    MetadataCatalog.pop("bad_input", None)


DATA_CASES = [*JSON_CASES, *TEXT_CASES, *IMAGE_CASES]


@pytest.mark.parametrize("case", [c for c in DATA_CASES if c.code], ids=lambda case: case.name)
def test_data_that_cannot_be_trained_on_is_refused(case: Case, tmp_path: Path, name: str) -> None:
    code, out, err = run_data(case, tmp_path, name)
    problems = refusal_problems(case, code, out, err, _left(tmp_path))
    assert not problems, problems


@pytest.mark.parametrize("case", [c for c in DATA_CASES if not c.code], ids=lambda case: case.name)
def test_an_unusual_image_is_accepted(case: Case, tmp_path: Path, name: str) -> None:
    register_case(case, tmp_path, name)
    records = load_records(name)
    check_records(name, records, 2)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (32,), 64
    image = CheckedMapper(cfg, is_train=True)(records[0])["image"]
    assert image.shape[0] == 3
    assert image.dtype == torch.uint8


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of the model that the cases of checkpoints evaluate."""
    path = tmp_path_factory.mktemp("honest") / "honest.pth"
    torch.save({"model": build_model(base_config()).state_dict()}, path)
    return path


@pytest.mark.parametrize("case", CHECKPOINT_CASES, ids=lambda case: case.name)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    case: Case, tmp_path: Path, honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "honest.pth").hardlink_to(honest)
    monkeypatch.chdir(tmp_path)
    code, out, err = run_checkpoint(case, tmp_path)
    problems = refusal_problems(case, code, out, err, _left(tmp_path))
    assert not problems, problems
    assert not (tmp_path / PROOF).exists(), "code of the file was run"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command lines of tools name."""
    folder = tmp_path_factory.mktemp("given")
    write_given(folder)
    return folder


@pytest.mark.parametrize("case", [*COMMAND_CASES, *TOOL_CASES], ids=lambda case: case.name)
def test_a_wrong_command_line_is_refused(
    case: Case, tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, place in (("configs", ROOT / "configs"), ("README.md", ROOT / "README.md"), ("given", given)):
        (tmp_path / name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    before = set(given.rglob("*"))
    code, out, err = run_command(case)
    left = [p.name for p in tmp_path.iterdir() if not p.is_symlink()] + [str(p) for p in set(given.rglob("*")) - before]
    problems = refusal_problems(case, code, out, err, left)
    assert not problems, problems


def test_the_page_of_bad_input_is_the_table_of_these_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/faults/write_page.py"


def test_the_table_has_the_promised_size_and_no_row_twice() -> None:
    cases = [case for group in GROUPS.values() for case in group]
    assert len(cases) >= 150
    rows = Counter((case.base, case.name) for case in cases)
    assert not [row for row, count in rows.items() if count > 1]


def test_every_rule_of_a_value_names_a_key_and_accepts_its_default() -> None:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    for key, rule in RULES.items():
        value = value_of(cfg, key)
        empty_by_default = key in ("MODEL.FPN.IN_FEATURES",)
        assert empty_by_default or rule.holds(value), f"{key} {value!r}"
