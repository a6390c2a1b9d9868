"""Config files never run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from yaml import YAMLError
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
        *("__import__('os').getcwd()", "().__class__", "x", "'a' * 9", "[1] * 9", "True", "1 < 2", "lambda: 1"),
        *("[x for x in [1, 2] if x]", "[x for x in 5]", "[x * y for x in [1] for y in [2]]"),
        *("[x for (x, y) in [(1, 2)]]", "[x for x.y in [1]]", "{1: 2}", "1 if 2 else 3", "(1 := 2)", "1; 2", ""),
        *("2 ** 65", "9 ** 9 ** 9", "10 ** 30 * 10", "1e400", "1 / 0", "(-8) ** 0.5", "5 % 3", "5 // 3"),
        *("-" * 300 + "1", "(" * 300 + "1" + ")" * 300, "1" + " + 1" * 1000),
        "[[[[x for x in {0}] for y in {0}] for z in {0}] for u in {0}]".format([*range(10)]),
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


def chain(length: int) -> dict[str, str]:
    """Files of which each is based on the next; the first is a.yaml."""
    links = {f"{i}.yaml": f"_BASE_: {i - 1}.yaml\n" for i in range(1, length)}
    return {"0.yaml": "VERSION: 2\nSEED: 5\n", **links, "a.yaml": f"_BASE_: {length - 1}.yaml\n"}


def test_chains_of_bases_may_be_fifty_files_long(tmp_path: Path) -> None:
    for name, text in chain(50).items():
        (tmp_path / name).write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert cfg.SEED == 5


NO_KEYS, NO_PATH = r"a\.yaml.*key: value", r"a\.yaml: _BASE_ is .*expected the path"
MANY = {f"{i}.yaml": f"_BASE_: [{i - 1}.yaml, {i - 1}.yaml]\n" for i in range(1, 12)}


@pytest.mark.parametrize(
    ("files", "error", "reason"),
    [
        *(({"a.yaml": text}, TypeError, NO_KEYS) for text in ("", "- 1\n- 2\n", "just words\n")),
        *(({"a.yaml": f"_BASE_: {base}\n"}, TypeError, NO_PATH) for base in ("5", "[1]", "{a: b}", "true")),
        ({"a.yaml": "_BASE_: b.yaml\n", "b.yaml": "A: !!python/object/apply:os.getpid []"}, ConstructorError, "b.yaml"),
        (
            {"a.yaml": "_BASE_: b.yaml\n", "b.yaml": "_BASE_: ./a.yaml\n"},
            ValueError,
            r"b\.yaml: _BASE_ leads back to .*a",
        ),
        (chain(1500), ValueError, r"a\.yaml: the files that it is based on .*more than 50 files deep"),
        ({**MANY, "0.yaml": "SEED: 5", "a.yaml": "_BASE_: 11.yaml"}, ValueError, r"a\.yaml: .*more than 500 files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_without_keys_and_bases_without_end_are_refused(
    tmp_path: Path, files: dict[str, str], error: type[Exception], reason: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=reason):
        get_cfg().merge_from_file(str(tmp_path / "a.yaml"))


BILLION = "a: &l0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "bomb",
    [
        BILLION,
        "a: &l0 {" + ", ".join(f"k{i}: 1" for i in range(9)) + "}\n"
        + "".join(f"b{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        "a: &t " + "x" * 100_000 + "\nb: [" + ", ".join(["*t"] * 999) + "]\n",
        "a: &e !!python/object/apply:eval ['[x for x in [" + "1, " * 400 + "]]']\nb: [" + ", ".join(["*e"] * 999) + "]",
    ],
    ids=["lists", "merged mappings", "texts", "expressions"],
)  # fmt: skip
def test_aliases_that_mean_billions_of_values_are_refused_at_once(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(
        YAMLError, match=r'(?s)more than 100000 values.*with what its aliases repeat.*bomb\.yaml", line'
    ):
        get_cfg().merge_from_file(str(tmp_path / "bomb.yaml"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1, *a]\n", "stands within what it repeats"),
        ("a: &a 1\nb: [" + ", ".join(["*a"] * 1001) + "]\n", r"more than 1000 aliases"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "more than 50 levels"),
        ("a0: &a0 1\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)), "50 levels"),
    ],
    ids=["circle", "many", "nested", "nested by aliases"],
)
def test_no_config_is_that_deep_or_repetitive(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(YAMLError, match=rf'(?s){reason}.*a\.yaml", line \d'):
        get_cfg().merge_from_file(str(tmp_path / "a.yaml"))


def test_aliases_within_reason_are_read_and_not_changed_by_a_file_above(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("A: &a {X: &x [1, 0]}\nB: *a\nC: {<<: *a, Y: *x}\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nB: {X: 2}\n")
    read = CfgNode.load_yaml_with_base(str(tmp_path / "leaf.yaml"))
    assert read == {"A": {"X": [1, 0]}, "B": {"X": 2}, "C": {"X": [1, 0], "Y": [1, 0]}}


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("VERSION: 2\nSOLVER:\n  MAX_ITER: 1\n  BASE_LR: 0.1\n  MAX_ITER: 2\n", "'MAX_ITER'", "3.*line 5"),
        ("SEED: 1\n'SEED': 2\n", "'SEED'", "1.*line 2"),
        ("A: {1: a, 0x1: b}\n", "1", "1.*line 1"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, key: str, lines: str) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(YAMLError, match=rf"(?s)key {key} stands twice .*line {lines}") as error:
        CfgNode.load_yaml_with_base(str(tmp_path / "twice.yaml"))
    assert "twice.yaml" in str(error.value)


@pytest.mark.parametrize("value", ["2001-99-99", "!!int abc", "!!float x", "!!binary é", "!!omap {a: 1}", "!new 1"])
def test_a_value_that_its_tag_does_not_allow_is_named_with_its_place(tmp_path: Path, value: str) -> None:
    with pytest.raises(YAMLError, match=r'evil\.yaml", line 2'):
        merge(tmp_path, value)


@pytest.mark.parametrize(
    "base", ["http://example.com/a.yaml", "https://example.com/a.yaml", "detectron2://a.yaml", "[ftp://example.com/a]"]
)
def test_a_base_on_another_machine_is_not_fetched(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    path = tmp_path / "leaf.yaml"
    path.write_text(f"_BASE_: {base}\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"leaf\.yaml: _BASE_ is .*on another machine.*your copy"):
        get_cfg().merge_from_file(str(path))
