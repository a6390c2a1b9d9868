"""The arrows between the rooms of the project: who may import whom, and how large things may grow."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.scripts import ROOT

PACKAGE = ROOT / "d2_ext"
STANDIN = PACKAGE / "_standin"
OUR_FILES = sorted(p for p in PACKAGE.rglob("*.py") if STANDIN not in p.parents)
STANDIN_FILES = sorted(STANDIN.rglob("*.py"))
SCRIPTS = sorted(
    [ROOT / "train_net.py", *(path for name in ("tools", "dev", "benchmarks") for path in (ROOT / name).glob("*.py"))]
)

# Room -> rooms of d2_ext it may import. `errors` and `files` are open to all; a room may import itself.
ALLOWED = {
    "errors": set(),
    "_detectron2": set(),
    "files": set(),
    "config": set(),
    "layers": set(),
    "modeling": {"layers"},
    "images": {"utils"},
    "synthetic": set(),
    "data": {"images", "synthetic"},
    "evaluation": {"data"},
    "visualization": {"images"},
    "checkpoint": {"config", "modeling"},
    "utils": {"layers", "modeling"},
    "inference": {"checkpoint", "config", "data", "images", "layers", "modeling", "utils", "visualization"},
    "export": {"layers", "modeling"},
    "engine": {
        *("checkpoint", "data", "evaluation", "images", "inference", "layers", "modeling", "utils", "visualization"),
    },
    "runs": {"checkpoint", "config", "data", "engine", "inference", "utils"},
    "report": {"checkpoint", "config", "evaluation", "images", "runs", "utils"},
    "model_zoo": {"checkpoint", "inference"},
    "demo": {"checkpoint", "images", "inference", "visualization"},
    "cli": {
        *("checkpoint", "config", "data", "demo", "engine", "evaluation", "export", "images", "inference", "report"),
        *("runs", "synthetic", "utils", "visualization"),
    },
    "__main__": {"cli"},
    "": {"_detectron2", "config", "modeling", "data"},
}
# Functions of tensors: they know nothing of configs, instances or the event storage.
PURE = ("modeling/assigners", "modeling/losses", "layers")
FORBIDDEN_IN_PURE = ("detectron2.config", "detectron2.structures", "detectron2.utils.events", "detectron2.data")
# Names of Detectron2 that break with today's setuptools, or need its compiled extension.
NEVER = ("detectron2.model_zoo", "detectron2.utils.testing", "detectron2._C", "d2_ext._standin")
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 600


@functools.cache  # several tests look at each file
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _room(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", OUR_FILES, ids=_name)
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    room = _room(path)
    for line, module in _imports(path):
        if module.startswith("d2_ext."):
            target = module.split(".")[1]
            is_room = (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file()
            allowed = ALLOWED[room] | {room, "errors", "files"}
            assert not is_room or target in allowed, f"{_name(path)}:{line}: {room!r} must not import {module}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Also inside a room, and counting imports inside functions and for type checkers."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in OUR_FILES}
    below = {}
    for name, path in modules.items():
        found = {module for _, module in _imports(path) if module in modules} - {name}
        # `from package import file` yields both names; only the file counts.
        below[name] = {m for m in found if not any(other.startswith(f"{m}.") for other in found)}
    while outside := [
        name
        for name, found in below.items()
        if not found & below.keys() or not any(name in others for others in below.values())
    ]:
        for name in outside:  # imports nothing that is left, or is imported by nothing that is left
            del below[name]
    assert not below, f"import each other in a circle: {', '.join(sorted(below))}"


@pytest.mark.parametrize("path", [*OUR_FILES, *SCRIPTS], ids=_name)
def test_nothing_fragile_of_detectron2_is_imported(path: Path) -> None:
    for line, module in _imports(path):
        assert not module.startswith(NEVER), f"{_name(path)}:{line}: imports {module}"


@pytest.mark.parametrize(
    "path", [p for p in OUR_FILES if p.relative_to(PACKAGE).as_posix().startswith(PURE)], ids=_name
)
def test_assigners_losses_and_layers_are_functions_of_tensors(path: Path) -> None:
    for line, module in _imports(path):
        assert not module.startswith(FORBIDDEN_IN_PURE), f"{_name(path)}:{line}: imports {module}"


@pytest.mark.parametrize("path", STANDIN_FILES, ids=_name)
def test_the_standin_knows_nothing_of_d2_ext(path: Path) -> None:
    for line, module in _imports(path):
        assert module.split(".")[0] != "d2_ext", f"{_name(path)}:{line}: imports {module}"


@pytest.mark.parametrize("path", SCRIPTS, ids=_name)
def test_scripts_import_d2_ext_before_detectron2(path: Path) -> None:
    modules = [module.split(".")[0] for _, module in sorted(_imports(path))]
    if "detectron2" in modules:
        assert "d2_ext" in modules[: modules.index("detectron2")], f"{_name(path)} imports detectron2 before d2_ext"


def test_the_standin_folder_is_no_package() -> None:
    assert not (STANDIN / "__init__.py").exists(), "it would give the stand-in's modules a second name"


@pytest.mark.parametrize("path", [*OUR_FILES, *STANDIN_FILES, *SCRIPTS], ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{_name(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(_parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = (ast.get_docstring(node) or "").count("\n")
            lines = node.end_lineno - node.lineno + 1 - doc
            assert lines <= MAX_FUNCTION_LINES, f"{_name(path)}:{node.lineno}: {node.name} has {lines} lines"
