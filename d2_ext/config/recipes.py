"""The recipes: YAML files that come with the package, or lie beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["RECIPES", "find_recipe", "first_line", "recipe_names"]

_PACKAGE = Path(__file__).resolve().parents[1]
# In an installed package they lie inside of it.
RECIPES = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """Paths below :data:`RECIPES` of all that can be run, such as ``VisDrone/fcos_R50_FPN.yaml``."""
    names = (path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if name.parts[0] != "_base_")


def first_line(name: str) -> str:
    """What a recipe says of itself, the comment in its first line; empty if there is none."""
    line = (RECIPES / name).read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def find_recipe(path: str) -> str:
    """The file that a path or the name of a recipe, with or without ``configs/``, means; an unknown one as it is."""
    inside = RECIPES / path.removeprefix("configs/")
    return str(inside) if path and not Path(path).exists() and inside.is_file() else path
