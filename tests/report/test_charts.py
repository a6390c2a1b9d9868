"""Charts: unique ids, colours of the page, and names that are only text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from d2_ext.report.charts import bar_chart, line_chart, panels_chart

LINE = {"a": ([0, 1, 2], [1.0, 2.0, 0.5])}


def test_names_may_hold_markup_and_mathematics() -> None:
    name = "<script>alert(1)</script> $x^$ & \"q\" 'p'"
    for svg in (
        line_chart({name: ([0, 1], [1, 2]), "b": ([0, 1], [2, 1])}, x_label="x", y_label=name),
        bar_chart({name: [1.0], "b": [2.0]}, [name], x_label="x"),
        panels_chart({name: LINE}, x_label="x", y_label="y"),
    ):
        assert "<script" not in svg
        assert name in "".join(ElementTree.fromstring(svg).itertext())


def test_ids_are_unique_over_several_charts_and_references_find_them() -> None:
    charts = [line_chart(LINE, x_label="x", y_label="y") for _ in range(2)]
    ids = [match for svg in charts for match in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in charts:
        used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'href="#([^"]+)"', svg)}
        assert used
        assert used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_colours_come_from_the_style_sheet() -> None:
    svg = line_chart(LINE, x_label="x", y_label="y")
    assert "var(--series-0)" in svg
    assert "var(--ink)" in svg
    assert not re.findall(r"#0102[0-9a-f]{2}", svg)
    assert "<style" not in svg
    assert "http" not in re.sub(r"http://www\.w3\.org/[\w/]+", "", svg)


def test_empty_single_infinite_and_logarithmic_series_are_drawn() -> None:
    inf, nan = float("inf"), float("nan")
    for series in ({}, {"a": ([], [])}, {"a": ([1], [2.0])}, {"a": ([0, 1, 2], [0.0, nan, inf])}):
        assert line_chart(series, x_label="x", y_label="y", log=True).startswith("<svg")
    assert bar_chart({"a": [nan, 1.0]}, ["x", "y"], x_label="AP").startswith("<svg")


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    svg = line_chart({"a": ([0, 1], [0.001, 100.0])}, x_label="x", y_label="y", log=True)
    texts = list(ElementTree.fromstring(svg).itertext())
    assert {"0.01", "1"} <= {text.strip() for text in texts}
