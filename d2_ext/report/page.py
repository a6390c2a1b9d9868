"""Sections as one HTML page that needs nothing else: no network, no script, no further file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources

from d2_ext.report.blocks import Section

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(title: str, source: str, sections: Sequence[Section]) -> str:
    """Fill the page's template; every text is escaped.

    Args:
        title: of the page.
        source: the run folder or folders, as they were named.
        sections: in their order.
    """
    # Escapes everything but what `safe_svg` marks, which only charts.py makes.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["safe_svg"] = Markup
    template = environment.from_string(_resource("page.html"))
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    style = Markup(_resource("page.css"))
    return template.render(title=title, source=source, sections=sections, made=made, style=style)


def _resource(name: str) -> str:
    return resources.files("d2_ext.report").joinpath(name).read_text(encoding="utf-8")
