"""``--data``: which config keys it writes, which the command line keeps, and what a saved config checks."""

from __future__ import annotations

from pathlib import Path

from d2_ext.cli.train import argument_parser, setup
from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError
from d2_ext.runs.config import load_run_config, log_lr_scaling, log_own_data

import pytest
from detectron2.config import CfgNode
from detectron2.utils import comm

from helpers.own_folders import SPLITS, coco_folder, crowdhuman_folder, visdrone_folder, yolo_folder
from helpers.scripts import ROOT

RECIPE = str(ROOT / "configs/quickstart/fcos_R18_synthetic.yaml")


def _config(data: Path | str, *options: str, recipe: str = RECIPE) -> CfgNode:
    return load_run_config(recipe, options, data=str(data))


def test_data_sets_every_number_of_classes_and_the_data_sets(tmp_path: Path) -> None:
    cfg = _config(coco_folder(tmp_path / "pets", SPLITS))
    nodes = (cfg.MODEL.FCOS, cfg.MODEL.DEFCN, cfg.MODEL.RETINANET, cfg.MODEL.GFL, cfg.MODEL.ROI_HEADS)
    assert [node.NUM_CLASSES for node in nodes] == [2] * 5
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54
    assert tuple(cfg.DATASETS.TRAIN) == ("own_pets_train",)
    assert tuple(cfg.DATASETS.TEST) == ("own_pets_val",)
    assert cfg.DATASETS.CLASSES == ("cat", "dog")
    assert str(tmp_path / "pets") == cfg.DATASETS.FOLDER
    assert cfg.TEST.EXPECTED_RESULTS == []
    assert not cfg.INPUT.IGNORE_REGIONS


def test_the_command_line_wins(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "pets", {**SPLITS, "test": ["e"]})
    options = ("DATASETS.TEST", "('own_pets_test',)", "MODEL.FCOS.NUM_CLASSES", "5", "INPUT.IGNORE_REGIONS", "True")
    cfg = _config(folder, *options)
    assert tuple(cfg.DATASETS.TEST) == ("own_pets_test",)
    assert (cfg.MODEL.FCOS.NUM_CLASSES, cfg.MODEL.DEFCN.NUM_CLASSES) == (5, 2)
    assert cfg.INPUT.IGNORE_REGIONS
    with pytest.raises(ConfigError, match="MODEL.FCOS.NUM_CLASSES is 1, but .* has 2 classes"):
        _config(folder, "MODEL.FCOS.NUM_CLASSES", "1")


def test_ignore_regions_are_heeded_where_data_and_detector_know_them(tmp_path: Path) -> None:
    folder = visdrone_folder(tmp_path / "drone", SPLITS)
    assert _config(folder).INPUT.IGNORE_REGIONS
    assert not _config(folder, "INPUT.IGNORE_REGIONS", "False").INPUT.IGNORE_REGIONS
    stock = load_run_config("", ["MODEL.META_ARCHITECTURE", "RetinaNet"], data=str(folder))
    assert not stock.INPUT.IGNORE_REGIONS, "Detectron2's own RetinaNet would take class -1 for an object"


def test_a_saved_config_repeats_the_run(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "pets", {"": [f"p{i}" for i in range(10)]})
    cfg = _config(folder, "DATASETS.HOLD_OUT", "0.3", "MODEL.FCOS.NUM_CLASSES", "4")
    saved = tmp_path / "config.yaml"
    saved.write_text(cfg.dump())
    again = _config("", recipe=str(saved))
    assert [again[key].dump() for key in ("DATASETS", "INPUT", "TEST")] == [
        cfg[key].dump() for key in ("DATASETS", "INPUT", "TEST")
    ]
    assert (again.MODEL.FCOS.NUM_CLASSES, again.MODEL.DEFCN.NUM_CLASSES) == (4, 2)


def test_a_saved_config_refuses_a_folder_that_has_changed(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "pets", SPLITS)
    saved = tmp_path / "config.yaml"
    saved.write_text(_config(folder).dump().replace("- cat", "- horse"))
    with pytest.raises(ConfigError, match="classes have changed"):
        _config("", recipe=str(saved))
    saved.write_text(_config(folder).dump().replace("pets\n", "gone\n"))
    with pytest.raises(ConfigError, match="DATASETS.FOLDER: no folder .*gone"):
        _config("", recipe=str(saved))


def test_a_folder_that_no_data_set_uses_is_refused(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path / "pets", SPLITS)
    with pytest.raises(ConfigError, match="neither DATASETS.TRAIN nor TEST.*own_pets_train.*Use --data"):
        _config("", "DATASETS.FOLDER", str(folder), "MODEL.RETINANET.NUM_CLASSES", "80")
    with pytest.raises(ConfigError, match="--data: no folder '.*nowhere'"):
        _config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="HOLD_OUT is 2"):
        _config(folder, "DATASETS.HOLD_OUT", "2.0")


def test_an_unknown_data_set_comes_with_advice() -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN: nothing is registered as 'visdrone_trian'\. Did you"):
        load_run_config(RECIPE, ["DATASETS.TRAIN", "('visdrone_trian',)"])


def test_masks_need_polygons(tmp_path: Path) -> None:
    folder = crowdhuman_folder(tmp_path / "crowd", SPLITS)
    with pytest.raises(ConfigError, match="MODEL.MASK_ON needs polygons, but the format crowdhuman"):
        _config(folder, "MODEL.MASK_ON", "True")


def test_the_log_says_what_was_found_and_how_often_it_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = _config(coco_folder(tmp_path / "pets", SPLITS), "SOLVER.MAX_ITER", "30", "SOLVER.IMS_PER_BATCH", "2")
    with caplog.at_level("INFO"):
        log_own_data(cfg)
    assert "format coco, 2 classes: cat, dog" in caplog.text
    assert "shows each of 3 training images 20.0 times" in caplog.text


def test_what_was_recognized_is_logged_by_each_process_into_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = coco_folder(tmp_path / "pets", SPLITS), tmp_path / "run"
    words = ["--config-file", RECIPE, "--data", str(data), "OUTPUT_DIR", str(output)]
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    setup(argument_parser().parse_args(words))
    assert (output / "log.txt.rank1").read_text().count("Own data in") == 1
    assert not (output / "log.txt").exists()


def test_another_batch_is_told_with_the_scaled_rate_and_nothing_is_changed(caplog: pytest.LogCaptureFixture) -> None:
    for options, said in (
        (["SOLVER.IMS_PER_BATCH", "8"], True),
        (["SOLVER.ACCUMULATE_BATCHES", "4"], True),
        (["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.0028"], False),  # scaled already
        (["SOLVER.BASE_LR", "0.1"], False),
    ):
        caplog.clear()
        cfg = load_config(RECIPE, options)
        log_lr_scaling(cfg, RECIPE)
        assert (
            "A step has 8 images, in the recipe 2 with SOLVER.BASE_LR 0.0007: linear scaling proposes SOLVER.BASE_LR "
            "0.0028, and SOLVER.MAX_ITER 275 for as many epochs. Nothing was changed: they are 0.0007 and 1100."
        ) * said in caplog.text
        assert bool(caplog.text) == said
