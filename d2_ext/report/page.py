"""Sections as one HTML page that needs nothing else: no network, no script, no further file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

from d2_ext.report.blocks import Section

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(title: str, source: str, sections: Sequence[Section]) -> str:
    """Fill the page's template; every text is escaped.

    Args:
        title: of the page.
        source: the run folder, as it was named.
        sections: in their order.
    """
    # Escapes everything but what `safe_svg` marks, which only charts.py makes.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["safe_svg"] = Markup
    template = environment.from_string(_resource("page.html"))
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    style = Markup(_resource("page.css"))
    return template.render(title=title, source=source, sections=sections, made=made, style=style)


def write_atomically(path: Path, text: str) -> Path:
    """Write a file in one step: a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _resource(name: str) -> str:
    return resources.files("d2_ext.report").joinpath(name).read_text(encoding="utf-8")
