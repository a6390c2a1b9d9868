"""Detectron2's COCO evaluator writes straight; what it leaves here is whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from d2_ext.evaluation import build_evaluator

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from helpers.small_runs import fresh_data


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_leaves_no_half_file_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    fresh_data(tmp_path / "data")
    folder = tmp_path / "run/inference"
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text("[]")
    evaluator = build_evaluator(get_cfg(), "small_images", str(folder))

    def half(self: COCOEvaluator, *args: Any) -> None:
        place = Path(self._unfinished)
        place.mkdir()
        (place / "instances_predictions.pth").write_text("whole")
        os.utime(place / "instances_predictions.pth", (1, 1))
        (place / "coco_instances_results.json").write_text('[{"image_')
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if wrapped:  # as torch does
            raise RuntimeError("[enforce fail at inline_container.cc:626]") from full
        raise full

    monkeypatch.setattr(COCOEvaluator, "evaluate", half)
    with pytest.raises(OSError, match=f"No space left on device: '{folder}/coco_instances_results.json'"):
        evaluator.evaluate()
    assert [path.name for path in folder.iterdir()] == ["coco_instances_results.json"]
    assert (folder / "coco_instances_results.json").read_text() == "[]"


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_data(tmp_path / "data")
    evaluator = build_evaluator(get_cfg(), "small_images", str(tmp_path / "run"))

    def wrong(self: COCOEvaluator, *args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(COCOEvaluator, "evaluate", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        evaluator.evaluate()


def test_the_file_that_detectron2_makes_of_other_formats_is_in_the_folder(tmp_path: Path) -> None:
    fresh_data(tmp_path / "data")
    metadata = MetadataCatalog.get("small_images")
    del metadata.json_file
    build_evaluator(get_cfg(), "small_images", str(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "small_images_coco_format.json" in names
    assert not any(name.startswith(".") for name in names)
    assert "json_file" not in metadata.as_dict()
