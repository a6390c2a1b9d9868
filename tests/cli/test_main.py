"""One program for all commands, and recipes by name."""

from __future__ import annotations

from pathlib import Path

from d2_ext.cli import main as program
from d2_ext.config.load import load_config
from d2_ext.config.recipes import find_recipe, first_line, recipe_names

import pytest

from helpers.scripts import ROOT


@pytest.mark.parametrize("command", program.COMMANDS)
def test_the_help_of_each_command_names_the_program_and_no_script(command: str, capsys: pytest.CaptureFixture) -> None:
    assert program.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: d2_ext {command} ")
    assert f"  d2_ext {'train' if command == 'eval' else command} " in text[text.index("examples:") :]
    assert "python tools/" not in text
    assert "train_net.py" not in text[text.index("examples:") :]


def test_every_tool_of_a_checkout_is_a_command() -> None:
    modules = {module for module, _, _ in program.COMMANDS.values()}
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} | {"train"} == modules


def test_the_overview_and_the_list_of_recipes(capsys: pytest.CaptureFixture) -> None:
    assert program.main([]) == 2
    assert program.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command}" in text for command in (*program.COMMANDS, "configs", "env"))
    assert program.main(["configs"]) == 0
    assert "\nVisDrone/retinanet_ceasc_R18_FPN512.yaml\n    " in capsys.readouterr().out
    assert program.main(["env"]) == 0
    assert "d2_ext" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "near"), [(["predct"], "'predict'"), (["convert", "datset"], "'convert dataset'")])
def test_an_unknown_command_is_answered_with_the_nearest(
    words: list[str], near: str, capsys: pytest.CaptureFixture
) -> None:
    assert program.main(words) == 2
    assert f"Did you mean {near}" in capsys.readouterr().err


def test_arguments_reach_the_command(capsys: pytest.CaptureFixture) -> None:
    assert program.main(["eval", "--config-file", "nowhere.yaml"]) == 2
    assert "--config-file: no file" in capsys.readouterr().err


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "quickstart/fcos_R18_synthetic.yaml"
    assert name in recipe_names()
    assert not any(recipe.startswith("_base_") for recipe in recipe_names())
    for path in (name, f"configs/{name}"):
        assert load_config(path).MODEL.META_ARCHITECTURE == "FCOS"
    (tmp_path / "quickstart").mkdir()
    (tmp_path / name).touch()
    assert find_recipe(name) == name  # what lies here comes first
    assert find_recipe("") == ""
    assert find_recipe("quickstart/nothing.yaml") == "quickstart/nothing.yaml"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_in_its_first_line_what_it_is(name: str) -> None:
    assert len(first_line(name)) > 10
