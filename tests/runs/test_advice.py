"""``check --advise``: the rules by hand, and that what is written trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.cli import check_dataset as tool
from d2_ext.config.load import load_config
from d2_ext.config.recipes import RECIPES
from d2_ext.data.check import SplitReport
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.runs.advice import Advice, advice_text, advise

import pytest
from detectron2.modeling import build_model

from helpers.own_folders import SPLITS, yolo_folder
from helpers.quick_weights import quick_weights


def _report(sides: list[float], *, images: int = 1000, size: tuple[int, int] = (640, 512), **more: Any) -> SplitReport:
    given: dict[str, Any] = {
        "name": "train",
        "images": images,
        "empty": 0,
        "regions": 0,
        "per_class": (len(sides),),
        "images_per_class": (images,),
        "sides": tuple(sides),
        "longest": tuple(2.0 * side for side in sides),
        "image_sizes": (size,) * images,
        "crowding": (7,) * images,
        "found": (),
    }
    return SplitReport(**{**given, **more})


def test_small_objects_get_the_fine_level_and_large_ones_the_coarse() -> None:
    small = advise(_report([16.0] * 100))  # 32 px long: 3 * 2^3 <= 32 < 3 * 2^4, but three levels at least
    assert (small.finest, small.coarsest, small.strides) == (2, 4, [4, 8, 16])
    large = advise(_report([64.0] * 90 + [250.0] * 10))  # 500 px long: 3 * 2^7 <= 500
    assert (large.finest, large.coarsest) == (3, 7)


def test_large_images_get_tiles_and_others_crops_of_eight_objects() -> None:
    whole = advise(_report([20.0] * 100))
    assert (whole.crop, whole.tile) == (320, 0)  # 8 * 40 px
    assert whole.object_share == 0.9  # 7 * 320^2 / (640 * 512) = 2.2 objects in a crop
    assert advise(_report([20.0] * 100, crowding=(10,) * 1000)).object_share == 0.0  # 3.1
    tiles = advise(_report([20.0] * 100, size=(4000, 3000)))
    assert (tiles.crop, tiles.tile, tiles.overlap) == (0, 512, 0.1)
    wide = advise(_report([200.0] * 100, size=(4000, 3000)))
    assert (wide.tile, wide.overlap) == (1024, 0.39)


@pytest.mark.parametrize(("images", "batch", "iterations"), [(100, 4, 12000), (1000, 8, 6000), (20000, 8, 30000)])
def test_small_sets_are_seen_often_and_large_ones_twelve_times(images: int, batch: int, iterations: int) -> None:
    found = advise(_report([20.0], images=images))
    assert (found.batch, found.iterations) == (batch, iterations)


def test_rare_classes_get_the_sampler_and_full_images_more_detections() -> None:
    found = advise(_report([20.0] * 50, per_class=(45, 5, 0), images_per_class=(900, 10, 0), crowding=(130,) * 1000))
    assert found.repeat_threshold == 0.16  # 16 * 1 %: sqrt(0.16 / 0.01) = 4 times as often
    assert found.detections == 200  # 1.5 * 130, rounded up to fifties
    assert advise(_report([20.0], per_class=(9, 1), images_per_class=(900, 100))).repeat_threshold == 0
    with pytest.raises(DatasetError, match="has no objects"):
        advise(_report([]))


FINE = advise(_report([16.0] * 100))
COARSE = advise(_report([64.0] * 90 + [250.0] * 10, size=(4000, 3000), images_per_class=(1000, 20)))
BASES = [
    "quickstart/fcos_R18_synthetic.yaml",
    "quickstart/defcn_R18_synthetic.yaml",
    "quickstart/retinanet_ceasc_R18_synthetic.yaml",
    "HIT-UAV/gfl_V23_lite_FPN64.yaml",
    "HIT-UAV/retinanet_V23_lite_FPN64.yaml",
]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("advice", [FINE, COARSE], ids=["fine", "coarse"])
def test_the_recipe_loads_and_its_model_has_the_levels(base: str, advice: Advice, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(advice_text(advice, load_config(RECIPES / base), RECIPES / base))
    cfg = load_config(path, ["MODEL.DEVICE", "cpu"])
    with quick_weights():
        model = build_model(cfg)
    shapes = model.backbone.output_shape()
    assert [shapes[name].stride for name in model.head_in_features] == advice.strides
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (8, 6000)
    assert (advice is COARSE, advice.tile) == (cfg.INPUT.TILES.ENABLED, cfg.TEST.TILE.SIZE)
    if advice is COARSE:
        assert (cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD) == ("RepeatFactorTrainingSampler", 0.32)


def test_the_command_writes_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = yolo_folder(tmp_path / "pets", SPLITS), tmp_path / "pets.yaml"
    argv = [str(folder), "--quiet", "--headers-only", "--advise", str(path)]
    assert tool.main(argv) == 0
    printed = capsys.readouterr().out
    assert path.read_text() in printed
    assert "# Schedule: 3 images, each seen 16000 times." in printed
    assert list(load_config(path).MODEL.FCOS.IN_FEATURES) == ["p3", "p4", "p5"]
    assert tool.main(argv) == 2
    assert "is there already" in capsys.readouterr().err
    assert tool.main([*argv[:-1], str(tmp_path / "pets.txt")]) == 2
    cfg = load_config(RECIPES / "COCO/retinanet_R18_FPN512.yaml").clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ConfigError, match="knows the dense detectors"):
        advice_text(FINE, cfg, "x.yaml")
