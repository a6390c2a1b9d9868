"""The report of a real run: the tool, and the page in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from d2_ext.cli import report as tool
from d2_ext.data import register_coco_folder
from d2_ext.report.accuracy import class_accuracies
from d2_ext.report.judged import judge
from d2_ext.report.run_folder import read_run

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.browser import console_problems, foreign_requests, open_browser
from helpers.own_folders import voc_folder
from helpers.tiny_run import CLASS_NAMES, DATASET, TinyRun

SECTIONS = {
    "summary": "Summary",
    "losses": "Losses",
    "ap": "AP over the training",
    "classes": "AP by class and size",
    "curves": "Precision and recall",
    "confusion": "Confusion matrix",
    "images": "Worst and best images",
    "masks": "Mask ratios",
    "speed": "Speed and operations",
    "config": "Configuration",
    "environment": "Environment",
}


@pytest.fixture(scope="module")
def registered(tiny_run: TinyRun) -> Iterator[str]:
    register_coco_folder(DATASET, tiny_run.data, json_file="train.json")
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.fixture(scope="module")
def page(tiny_run: TinyRun, registered: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "out/report.html"
    assert tool.main([str(tiny_run.folder), "--output", str(path), "--images", "2"]) == 0
    return path


def test_nothing_of_a_whole_run_is_missing_but_the_large_objects(page: Path) -> None:
    text = page.read_text()
    assert "Not here." not in text
    assert text.count("<figure") >= 10
    assert text.count("data:image/jpeg") == 5  # 2 worst, 2 best, 1 image of masks
    assert page.stat().st_size < 3e6


def test_ap_by_class_is_what_the_run_measured(tiny_run: TinyRun, registered: str) -> None:
    results = tiny_run.folder / "inference/coco_instances_results.json"
    rows = class_accuracies(judge(registered, results, max_detections=100, command=""))
    run = read_run(tiny_run.folder)
    assert [row.name for row in rows] == list(CLASS_NAMES)
    for row in rows:
        assert 100 * row.ap == pytest.approx(run.last(f"bbox/AP-{row.name}"), abs=1e-6)


def test_the_browser_shows_every_section_without_an_error(page: Path, tmp_path: Path) -> None:
    with open_browser(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        assert console_problems(browser) == []
        assert foreign_requests(browser) == []
        assert browser.title == "RetinaNetCEASC in run"
        for key, title in SECTIONS.items():
            browser.find_element("css selector", f"nav a[href='#{key}']").click()
            heading = browser.find_element("css selector", f"#{key} h2")
            assert heading.text == title
            assert heading.is_displayed()
            content = browser.find_element("css selector", f"#{key}").rect
            assert content["height"] > 80, key
        shown = browser.find_elements("css selector", "#classes tbody th")
        assert [cell.text for cell in shown[:4]] == list(CLASS_NAMES)
        for chart in browser.find_elements("css selector", ".chart svg, .image svg"):
            assert chart.size["width"] > 200
            assert chart.size["height"] > 60
        for image in browser.find_elements("css selector", "[role=img]"):
            assert len(image.get_attribute("aria-label")) > 20
        too_wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not browser.execute_script(too_wide)


def test_light_and_dark_have_readable_colours(page: Path, tmp_path: Path) -> None:
    with open_browser(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            paper = _luminance(browser, "body", "background-color")
            assert (paper > 0.5) == (scheme == "light")
            for place in ("body", "figcaption", "nav a", "caption"):
                assert _contrast(_luminance(browser, place, "color"), paper) >= 4.5, (scheme, place)
            line = _luminance(browser, ".chart svg path[style*='--series-0']", "stroke")
            assert _contrast(line, paper) >= 3, scheme


def test_a_damaged_run_still_gets_its_report(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(tiny_run.folder, run)
    (run / "inference/coco_instances_results.json").write_text("[{]")
    (run / "model_final.pth").write_bytes(b"no checkpoint")
    (run / "metrics.json").write_text((run / "metrics.json").read_text()[:-40])
    assert tool.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "is not a list of COCO results" in text
    assert "was not loaded" in text
    assert "1 damaged lines" in text


def test_an_unregistered_data_set_is_named_with_the_folder_that_has_it(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _without_weights(tiny_run.folder, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(DATASET, "tests_tiny_other"))
    assert tool.main([str(run)]) == 0
    assert "is not registered here" in (run / "report.html").read_text()
    try:
        assert tool.main([str(run), "--data", str(tiny_run.data)]) == 0
        assert "is not registered here" not in (run / "report.html").read_text()
        assert tool.main([str(run), "--data", str(tiny_run.data)]) == 2
        assert "of this run 0 are not" in capsys.readouterr().err
    finally:
        DatasetCatalog.remove("tests_tiny_other")
        MetadataCatalog.remove("tests_tiny_other")


def test_own_data_of_any_format_that_moved_are_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = voc_folder(tmp_path / "there/pets", {"train": ["a"], "val": ["b"]})
    run, before = tmp_path / "run", tmp_path / "before/pets"
    (run / "inference").mkdir(parents=True)
    (run / "config.yaml").write_text(f"DATASETS: {{FOLDER: '{before}', TEST: [own_pets_val]}}\n")
    (run / "inference/coco_instances_results.json").write_text("[]")
    try:
        assert tool.main([str(run), "--data", str(moved)]) == 0
        page = (run / "report.html").read_text()
        assert "is not registered here" not in page
        assert "own_pets_val" in page.partition(", judged by COCO")[0]
        renamed = moved.rename(tmp_path / "there/animals")
        assert tool.main([str(run), "--data", str(renamed)]) == 2
        assert "evaluated on own_pets_val. Expected the folder of the training, under the name that it had there: " in (
            capsys.readouterr().err
        )
        assert tool.main([str(run), "--data", str(before)]) == 2
        assert f"no folder '{before}'" in capsys.readouterr().err
    finally:
        for name in [name for name in DatasetCatalog.list() if name.startswith(("own_pets_", "own_animals_"))]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_the_active_shares_are_plotted_when_asked_for(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plot = tmp_path / "report.html", tmp_path / "ratios.png"
    run = _without_weights(tiny_run.folder, tmp_path / "copied/run")
    assert tool.main([str(run), "--output", str(page), "--mask-plot", str(plot)]) == 0
    assert f"Wrote {plot}" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"copied", "report.html", "ratios.png"}
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 2}\n')
    assert tool.main([str(tmp_path), "--mask-plot", str(plot)]) == 1
    assert "holds no mask_ratio/* values" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path), "--mask-plot", "plot.xyz"])


def test_wrong_usage_ends_with_code_2_and_a_file_that_cannot_be_written_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path / "nowhere")]) == 2
    assert "There is no run folder" in capsys.readouterr().err
    (tmp_path / "log.txt").write_text("")
    (tmp_path / "file").write_text("")
    assert tool.main([str(tmp_path), "--output", str(tmp_path / "file/report.html")]) == 1
    for wrong in (["--images", "-1"], ["--score-threshold", "2"], ["--score-threshold", "x"]):
        with pytest.raises(SystemExit, match="2"):
            tool.main([str(tmp_path), *wrong])


def _without_weights(run: Path, to: Path) -> Path:
    """A copy whose report counts no operations: that takes longer than all else of it."""
    return shutil.copytree(run, to, ignore=shutil.ignore_patterns("*.pth"))


def _luminance(browser: object, selector: str, name: str) -> float:
    """Relative luminance of a computed colour, as WCAG 2 defines it."""
    element = browser.find_element("css selector", selector)
    value = browser.execute_script(f"return getComputedStyle(arguments[0]).getPropertyValue('{name}')", element)
    channels = [int(x) / 255 for x in re.findall(r"\d+", value)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
