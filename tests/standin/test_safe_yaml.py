"""Config files never run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg
from yaml.constructor import ConstructorError


def evaluate(source: str) -> Any:
    from detectron2.config._yaml import evaluate_arithmetic  # of the stand-in alone

    return evaluate_arithmetic(source)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("1 + 2 * 3", 7),
        ("-2 ** 2", -4),
        ("[1.5, (2, 3)]", [1.5, (2, 3)]),
        ("2 ** (1.0 / 2)", 2**0.5),
        ("[[x * y for y in (1, 10)] for x in [1, 2]]", [[1, 10], [2, 20]]),
        (" [x - 1 for x in [1]] ", [0]),
    ],
)
def test_arithmetic_is_computed(source: str, value: object) -> None:
    assert evaluate(source) == value


@pytest.mark.parametrize(
    "source",
    [
        "__import__('os').getcwd()",
        "().__class__",
        "x",
        "'a' * 9",
        "[1] * 9",
        "True",
        "1 < 2",
        "lambda: 1",
        "[x for x in [1, 2] if x]",
        "[x for x in 5]",
        "[x * y for x in [1] for y in [2]]",
        "[x for (x, y) in [(1, 2)]]",
        "[x for x.y in [1]]",
        "{1: 2}",
        "1 if 2 else 3",
        "(1 := 2)",
        "1; 2",
        "",
        "2 ** 65",
        "9 ** 9 ** 9",
        "10 ** 30 * 10",
        "1e400",
        "1 / 0",
        "(-8) ** 0.5",
        "5 % 3",
        "5 // 3",
        "-" * 300 + "1",
        "(" * 300 + "1" + ")" * 300,
        "1" + " + 1" * 1000,
        "[[[[x for x in [1,2,3,4,5,6,7,8,9,9]] for y in [1,2,3,4,5,6,7,8,9,9]] for z in [1,2,3,4,5,6,7,8,9,9]]"
        " for u in [1,2,3,4,5,6,7,8,9,9]]",
    ],
)
def test_everything_else_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        evaluate(source)


def merge(folder: Path, value: str, **kwargs: bool) -> None:
    path = folder / "evil.yaml"
    path.write_text(f"VERSION: 2\nOUTPUT_DIR: {value}\n")
    get_cfg().merge_from_file(str(path), **kwargs)


@pytest.mark.parametrize("allow_unsafe", [True, False])
@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:os.system ["touch {0}"]',
        "!!python/object/apply:eval [\"__import__('os').system('touch {0}')\"]",
        '!!python/object/new:os.system ["touch {0}"]',
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/object/apply:exec [\"import os; os.system('touch {0}')\"]",
    ],
)
def test_no_tag_runs_code(tmp_path: Path, tag: str, allow_unsafe: bool) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(ConstructorError) as error:
        merge(tmp_path, tag.format(trace), allow_unsafe=allow_unsafe)
    assert not trace.exists()
    assert "evil.yaml" in str(error.value)
    assert "!!python/" in str(error.value)


def test_the_eval_tag_says_how_to_allow_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(ConstructorError, match="allow_unsafe=True"):
        merge(tmp_path, '!!python/object/apply:eval ["1"]', allow_unsafe=False)
    with pytest.raises(ConstructorError, match=r"takes \[one string\]"):
        merge(tmp_path, '!!python/object/apply:eval ["1", "2"]')


def test_a_base_file_is_read_as_safely(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: !!python/object/apply:os.getpid []\n")
    path = tmp_path / "leaf.yaml"
    path.write_text("_BASE_: base.yaml\nVERSION: 2\n")
    with pytest.raises(ConstructorError, match=r"base\.yaml"):
        get_cfg().merge_from_file(str(path))


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(TypeError, match=r"a\.yaml.*key: value"):
        get_cfg().merge_from_file(str(path))
