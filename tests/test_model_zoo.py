"""The detectors that come with the package: found, loaded, fine-tuned, and within their limits of size."""

from __future__ import annotations

import json
from pathlib import Path

import d2_ext
from d2_ext import model_zoo
from d2_ext.checkpoint.safe import SafeCheckpointer, load_weights
from d2_ext.checkpoint.zoo import PREFIX, model_folder, model_weights
from d2_ext.cli import demo, predict
from d2_ext.config.load import load_config
from d2_ext.demo.checkpoints import list_checkpoints
from d2_ext.errors import CheckpointError

import pytest
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(ROOT / "configs/HIT-UAV/fcos_sparse_V23_lite_FPN64.yaml")
IMAGE = ROOT / "docs/images/thermal.jpg"
MODELS = model_zoo.list_models()


def test_there_is_a_model() -> None:
    assert "thermal_drone" in MODELS


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small_complete_and_says_nothing_of_a_machine(name: str) -> None:
    assert model_weights(name).stat().st_size <= 8_000_000
    config = (model_folder(name) / "config.yaml").read_text()
    assert f"WEIGHTS: {PREFIX}{name}" in config
    assert "/root" not in config
    assert "/home" not in config
    card = model_zoo.card(name).read_text()
    for part in ("## Figures", "## Limits", "## Repeat it", "CC BY 4.0", "AP50"):
        assert part in card
    assert name in (ROOT / "NOTICE").read_text()


def test_it_finds_the_persons_of_a_thermal_image() -> None:
    predictor = model_zoo.get("thermal_drone", score_thresh=0.5)
    assert predictor.class_names == ["Person", "Car", "Bicycle", "OtherVehicle"]
    (found,) = predictor([IMAGE])
    assert found.image_size == (512, 640)
    assert len(found) >= 3


def test_it_predicts_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [str(IMAGE), "--output", str(tmp_path / "out"), "--model", "thermal_drone", "--save-json", "--masks"]
    assert predict.main(argv) == 0
    assert len(json.loads((tmp_path / "out/coco_results.json").read_text())) >= 3
    assert (tmp_path / "out/thermal.jpg").is_file()
    assert (tmp_path / "out/thermal_masks.jpg").is_file()
    assert predict.main([*argv[:-2], "--overwrite", "--weights", "model.pth"]) == 2
    assert "Leave out --weights" in capsys.readouterr().err


def test_it_starts_a_training_of_other_classes(caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(RECIPE, ["MODEL.FCOS.NUM_CLASSES", "2"])
    SafeCheckpointer(build_model(cfg)).load("d2_ext://thermal_drone")
    (line,) = [r.getMessage() for r in caplog.records if "start anew" in r.getMessage()]
    assert "head.cls_tower.predictors.logits.bias, head.cls_tower.predictors.logits.weight" in line
    with pytest.raises(CheckpointError, match="have another shape"):
        load_weights(build_model(cfg), "d2_ext://thermal_drone")


@pytest.mark.parametrize("name", ["thermal_dron", "", "../engine"])
def test_an_unknown_model_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"There is no model .* in the package\..*thermal_drone"):
        model_zoo.get(name)


def test_the_demo_offers_it_first_also_without_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(list_checkpoints(None)) == MODELS
    (tmp_path / "output/run").mkdir(parents=True)
    for name in ("config.yaml", "model_final.pth"):
        (tmp_path / "output/run" / name).touch()
    assert list(list_checkpoints(None)) == [*MODELS, "run/model_final.pth"]
    assert demo.main(["--root", str(tmp_path / "nowhere")]) == 2  # a folder that is named must be there


def test_version_and_zoo_come_with_the_same_package() -> None:
    assert model_folder("thermal_drone").is_relative_to(Path(d2_ext.__file__).parent)
