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
    large = advise(_report([20.0] * 20 + [64.0] * 70 + [250.0] * 10))  # 500 px long: 3 * 2^7 <= 500
    assert (large.finest, large.coarsest) == (3, 7)
    assert advise(_report([16.0] * 96 + [250.0] * 4)).coarsest == 4  # less than a twentieth of them


def test_large_images_get_tiles_of_four_objects_and_others_crops_of_two() -> None:
    whole = advise(_report([80.0, *[20.0] * 9, *[80.0] * 10]))
    assert (whole.crop, whole.tile, whole.scale) == (320, 0, 1.0)  # 2 * 160 px
    assert whole.object_share == 0.9  # 7 * 320^2 / (640 * 512) = 2.2 objects in a crop
    assert advise(_report([20.0] * 100, crowding=(16,) * 1000)).object_share == 0.0  # 16 * 256^2 / (640 * 512) = 3.2
    assert advise(_report([20.0] * 100, crowding=(14,) * 1000)).object_share == 0.9  # 2.8
    tiles = advise(_report([20.0] * 100, size=(4000, 3000)))
    assert (tiles.crop, tiles.tile, tiles.overlap) == (256, 512, 0.1)
    wide = advise(_report([*[20.0] * 50, *[100.0] * 50], size=(4000, 3000)))
    assert (wide.crop, wide.tile, wide.overlap) == (384, 800, 0.25)  # 2 * 200 px, to the nearest even multiple of 32
    # Tiles of images that keep their size keep theirs, too, where they are cut off at the edge of a low one.
    assert "MIN_SIZE_TEST: 0\n" in advice_text(wide, load_config(RECIPES / BASES[0]), RECIPES / BASES[0])


def test_images_are_made_smaller_where_hardly_an_object_is_small() -> None:
    found = advise(_report([*[20.0] * 5, *[96.0] * 85, *[240.0] * 10]))
    assert (found.scale, found.short_side) == (0.5, 256)  # of all but a tenth 96 px become 48
    assert (found.finest, found.coarsest) == (3, 6)  # a twentieth below 32 px; 480 px become 240: 3 * 2^6 <= 240
    assert (found.crop, found.batch) == (0, 3)  # 320x256 px: a step of 4 * 256^2 px has room for 3.2 whole images
    text = advice_text(found, load_config(RECIPES / BASES[0]), RECIPES / BASES[0])
    assert "a tenth of the objects is below 96x96 px, so scaled by 0.50; then 5% of the objects are" in text
    assert "MIN_SIZE_TRAIN: [256]\n  MIN_SIZE_TEST: 256\n  CROP:\n    ENABLED: false\n" in text
    large = advise(_report([96.0] * 100, size=(1000, 800)))  # of which 500x400 px are left
    assert (large.crop, large.batch) == (256, 4)
    text = advice_text(large, load_config(RECIPES / BASES[0]), RECIPES / BASES[0])
    assert "MIN_SIZE_TRAIN: [256]\n  MIN_SIZE_TEST: 400\n" in text
    assert "SIZE: [512, 512]" in text  # of the file's px: crops are cut out first
    tiles = advise(_report([96.0] * 100, size=(4000, 3000)))
    assert "MIN_SIZE_TEST: 512\n" in advice_text(tiles, load_config(RECIPES / BASES[0]), RECIPES / BASES[0])
    assert "TILE:\n    SIZE: 1024\n" in advice_text(tiles, load_config(RECIPES / BASES[0]), RECIPES / BASES[0])
    assert advise(_report([96.0] * 100, size=(2000, 1500))).tile == 0  # 1000 px then
    assert advise(_report([0.0] * 50)).scale == 1.0


@pytest.mark.parametrize(
    ("images", "size", "batch", "iterations"),
    [
        (100, (640, 512), 4, 12000),
        (20000, (640, 512), 4, 60000),
        (100, (128, 128), 8, 6000),
        (9, (4000, 3000), 4, 12000),
    ],
)
def test_steps_are_alike_in_px_and_images_are_seen_often(
    images: int, size: tuple[int, int], batch: int, iterations: int
) -> None:
    found = advise(_report([20.0], images=images, size=size))  # crops of 256 px, whole images, crops of 256 px
    assert (found.batch, found.iterations) == (batch, iterations)


def test_rare_classes_get_the_sampler_and_full_images_more_detections() -> None:
    found = advise(_report([20.0] * 50, per_class=(45, 5, 0), images_per_class=(900, 10, 0), crowding=(130,) * 1000))
    assert found.repeat_threshold == 0.16  # 16 * 1 %: sqrt(0.16 / 0.01) = 4 times as often
    assert found.detections == 200  # 1.5 * 130, rounded up to fifties
    assert advise(_report([20.0], per_class=(9, 1), images_per_class=(900, 100))).repeat_threshold == 0
    with pytest.raises(DatasetError, match="has no objects"):
        advise(_report([]))


FINE = advise(_report([16.0] * 100))
COARSE = advise(_report([20.0] * 20 + [64.0] * 70 + [250.0] * 10, size=(4000, 3000), images_per_class=(1000, 20)))
BASES = [
    "quickstart/fcos_R18_synthetic.yaml",
    "quickstart/defcn_R18_synthetic.yaml",
    "quickstart/retinanet_ceasc_R18_synthetic.yaml",
    "HIT-UAV/gfl_V22_lite_FPN64.yaml",
    "HIT-UAV/retinanet_V22_lite_FPN64.yaml",
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
    assert (advice.batch, advice.iterations) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
    assert (advice.crop, advice.tile) == (cfg.INPUT.CROP.SIZE[0], cfg.TEST.TILE.SIZE)
    assert (advice is COARSE) == bool(cfg.TEST.TILE.SIZE)
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
