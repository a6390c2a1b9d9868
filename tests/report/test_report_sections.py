"""The whole page without a browser: sections, notes on what is missing, escaping."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.report import ReportOptions, write_report
from d2_ext.report.blocks import Missing, Section, Text
from d2_ext.report.configuration import configuration_blocks
from d2_ext.report.page import render
from d2_ext.report.report import build_sections
from d2_ext.report.run_folder import read_run

import pytest
from detectron2.config import get_cfg

from helpers.report_scene import EVIL, NAME, detection, objects, registered

CAR, VAN = [10.0, 10, 20, 20], [50.0, 10, 40, 40]
KEYS = [
    "summary",
    "losses",
    "ap",
    "classes",
    "curves",
    "confusion",
    "images",
    "masks",
    "speed",
    "config",
    "environment",
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def _parse(path: Path) -> _Tags:
    tags = _Tags()
    tags.feed(path.read_text())
    return tags


def test_an_empty_run_says_in_each_section_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("")
    sections = build_sections(read_run(tmp_path), ReportOptions())
    assert [section.key for section in sections] == KEYS
    for section in sections:
        missing = [block for block in section.blocks if isinstance(block, Missing)]
        assert missing, section.key
        assert missing[0].command.startswith("d2_ext train ") or section.key == "speed"


def test_nothing_out_of_data_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    run = tmp_path / "<img src=x onerror=alert(1)>"
    (run / "inference").mkdir(parents=True)
    (run / "config.yaml").write_text(
        f"DATASETS:\n  TEST: [{NAME}]\nMODEL:\n  META_ARCHITECTURE: '{EVIL.replace(chr(39), '')}'\n"
    )
    row = {"iteration": 1, "total_loss": 1.0, f"loss_{EVIL}": 0.5, f"bbox/AP-{EVIL}": 3.0, f"mask_ratio/{EVIL}": 0.1}
    (run / "metrics.json").write_text(json.dumps(row))
    (run / "log.txt").write_text(f"Environment info:\n{EVIL}\n")
    rows = [detection(1, 1, CAR, 0.9), detection(1, 2, CAR, 0.8), detection(1, 2, VAN, 0.7)]
    (run / "inference/coco_instances_results.json").write_text(json.dumps(rows))
    with registered(tmp_path, "coco", [{"annotations": objects((0, CAR), (1, VAN))}]):
        path = write_report(run, tmp_path / "report.html")
    page, tags = path.read_text(), _parse(path)
    assert "script" not in tags.tags
    assert "img" not in tags.tags
    assert not tags.handlers
    assert EVIL not in page
    assert page.count("&lt;script&gt;") > 5
    assert all(address.startswith(("#", "data:")) for address in tags.addresses)
    assert len(tags.ids) == len(set(tags.ids))
    assert {a[1:] for a in tags.addresses if a.startswith("#")} <= set(tags.ids)
    assert "default-src 'none'" in page


def test_masks_are_shown_with_their_recall_in_training_and_in_evaluation(tmp_path: Path) -> None:
    rows = [
        {
            "iteration": 19,
            "mask_ratio/cls": 0.3,
            "mask_recall/cls": 0.5,
            "mask_recall/reg": 0.25,
            "mask_ratio/p3_cls": 0.4,
        },
        {
            "iteration": 39,
            "mask_ratio/cls": 0.2,
            "mask_recall/cls": 0.9,
            "mask_recall/reg": 0.75,
            "mask_ratio/p3_cls": 0.1,
        },
        {"iteration": 40, "masks/recall": 98.765, "masks/recall-small": 97.5, "masks/active": 7.25},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "cls from 0.500 at 19 to 0.900 at 39; reg from 0.250 at 19 to 0.750 at 39" in page
    for name, value in {"recall": "98.77", "recall-small": "97.50", "active": "7.25"}.items():
        assert re.search(rf"<t[hd][^>]*>{name}</t[hd]>\s*<td[^>]*>{value}</td>", page), name


def test_the_validation_loss_stands_beside_that_of_the_training(tmp_path: Path) -> None:
    rows = [{"iteration": i, "total_loss": t, "loss_cls": t / 2} for i, t in ((9, 4.0), (19, 2.0), (29, 1.0))]
    for row, value in zip(rows, (3.0, 2.0, 2.5)):
        row |= {"val_loss/total": value, "val_loss/loss_cls": value / 2}
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "training from 4.00 at 9 to 1.00 at 29; validation from 3.00 at 9 to 2.50 at 29" in page
    assert "lowest at iteration 19 (2.000) and 25.0 % higher at the end." in page
    assert re.search(r">loss_cls</th><td>0.500</td><td>1.000</td><td>1.250</td>", page)


def test_ignore_regions_and_each_verdict_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "inference").mkdir()
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  TEST: [{NAME}]\n")
    rows = [detection(1, 1, CAR, 0.9), detection(1, 1, VAN, 0.8), detection(1, 2, [0.0, 60, 20, 20], 0.7)]
    (tmp_path / "inference/coco_instances_results.json").write_text(json.dumps(rows))
    truth = objects((0, CAR), (1, VAN), (0, [100.0, 60, 20, 20]))
    with registered(tmp_path, "visdrone", [{"annotations": truth, "ignore_regions": [[150.0, 0, 50, 50]]}]):
        page = write_report(tmp_path, tmp_path / "out/report.html").read_text()
    # Left and right: what was found, and what was taken for another class; on one side only: missed and false.
    for look, count in {"found": 2, "confused": 2, "missed": 1, "false": 1}.items():
        assert page.count(f'<rect class="{look}"') == count, look
    assert page.count('<rect class="ignored" x="150.0"') == 2
    assert "official rules" in page


def test_an_image_that_is_gone_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "inference").mkdir()
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  TEST: [{NAME}]\n")
    (tmp_path / "inference/coco_instances_results.json").write_text(json.dumps([detection(2, 1, CAR, 0.9)]))
    with registered(tmp_path, "coco", [{"annotations": objects((0, CAR))}] * 2):
        (tmp_path / "1<b>.png").unlink()
        page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert "Worst 1: No image" in page
    assert "Best 1: 2&lt;b&gt;.png, F1 1.00" in page


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    (tmp_path / "log.txt").write_text("")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if ".tmp" in p.name] == []


def test_texts_are_escaped_in_every_place() -> None:
    page = render("<b>", "<i>", [Section("k", "<u>", [Text("<s>"), Missing("<q>", "<tt>")])])
    assert not re.findall(r"<(b|i|u|s|q|tt)>", page)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a base, a recipe over it, and a run folder with the given config; returns the folder."""

    def write(config: str) -> Path:
        (tmp_path / "base.yaml").write_text("SOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 7\n")
        (tmp_path / "recipe.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 9\n")
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.yaml").write_text(config)
        log = f"Command line arguments: Namespace(config_file='{tmp_path / 'recipe.yaml'}', resume=False)\n"
        (run / "log.txt").write_text(log)
        return run

    return write


def test_the_config_is_told_apart_from_recipe_base_and_defaults(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED = 0.5, 9, 3
    tables = configuration_blocks(read_run(recipe(cfg.dump())), None)
    assert list(tables[0].rows) == [["SEED", "-1", "3"]]
    assert tables[1].rows == [["SOLVER.MAX_ITER", "7", "9"]]
    assert [row[0] for row in tables[2].rows] == ["SEED", "SOLVER.BASE_LR", "SOLVER.MAX_ITER"]


def test_a_recipe_that_is_no_local_yaml_file_is_not_read(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    run = recipe("SEED: 3\n")
    for name in ("/etc/passwd", "https://example.org/a.yaml"):
        (run / "log.txt").write_text(f"Command line arguments: Namespace(config_file='{name}', resume=False)\n")
        blocks = configuration_blocks(read_run(run), None)
        assert isinstance(blocks[0], Missing)
        assert "is not there" in blocks[0].why
