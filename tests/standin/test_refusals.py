"""Asking the stand-in for what only Detectron2 has gives an explanation."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from d2_ext.config.checks import RULES

import detectron2
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, get_detection_dataset_dicts, samplers
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances

MISSING = [
    ("config", "LazyConfig"),
    ("data.transforms", "MinIoURandomCrop"),
    ("data.detection_utils", "transform_keypoint_annotations"),
    ("structures", "RotatedBoxes"),
    ("layers", "ROIAlign"),
    ("solver.build", "GradientClipType"),
    ("checkpoint.c2_model_loading", "convert_c2_detectron_names"),
    ("modeling", "GeneralizedRCNN"),
    ("modeling.backbone", "SwinTransformer"),
    ("modeling", "FCOS"),
    ("modeling.meta_arch", "PanopticFPN"),
    ("modeling.anchor_generator", "RotatedAnchorGenerator"),
    ("modeling.box_regression", "Box2BoxTransformRotated"),
    ("modeling", "roi_heads"),  # a module
    ("config", "upgrade_config"),
    ("utils.registry", "locate"),
    ("utils.visualizer", "GenericMask"),
    ("engine.hooks", "PreciseBN"),
    ("layers", "NaiveSyncBatchNorm"),
    ("structures", "Keypoints"),
    ("structures.boxes", "matched_pairwise_iou"),
    ("utils.colormap", "random_colors"),
]


def test_it_says_what_it_is() -> None:
    assert detectron2.__standin__ is True
    assert detectron2.__version__ == "0.6+d2ext"


@pytest.mark.parametrize(("module", "name"), MISSING)
def test_a_missing_name_is_explained(module: str, name: str) -> None:
    loaded = importlib.import_module(f"detectron2.{module}")
    with pytest.raises(ImportError, match=rf"'detectron2\.{module}\.{name}' is not in the stand-in.*install\.html"):
        exec(f"from detectron2.{module} import {name}")
    with pytest.raises(ImportError, match="not in the stand-in"):
        exec(f"module.{name}", {"module": loaded})


@pytest.mark.parametrize(("module", "name"), MISSING)
def test_probing_for_a_missing_name_finds_nothing(module: str, name: str) -> None:
    loaded = importlib.import_module(f"detectron2.{module}")
    assert not hasattr(loaded, name)
    assert getattr(loaded, name, None) is None


def test_a_name_that_nobody_has_is_a_usual_error() -> None:
    import detectron2.config as config

    with pytest.raises(AttributeError, match="no attribute 'get_cfgg'"):
        _ = config.get_cfgg
    with pytest.raises(ImportError, match="cannot import name 'get_cfgg'"):
        from detectron2.config import get_cfgg  # noqa: F401


@pytest.mark.parametrize(
    "module",
    [
        "modeling.roi_heads.box_head",
        "modeling.meta_arch.fcos",
        "checkpoint.catalog",
        "config.compat",
        "utils.memory",
        "structures.keypoints",
        "projects",
        "export",
    ],
)
def test_a_missing_module_is_explained(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="is not in the stand-in") as error:
        importlib.import_module(f"detectron2.{module}")
    assert f"detectron2.{module}".startswith(error.value.name)


def test_a_module_that_nobody_has_is_a_usual_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'detectron2.modelling'"):
        importlib.import_module("detectron2.modelling")
    assert importlib.util.find_spec("detectron2._C") is None  # a usual question


def test_a_module_is_missing_once_its_file_is(tmp_path: Path) -> None:
    from detectron2._missing import MISSING_MODULES

    assert "detectron2.solver.lr_scheduler" not in MISSING_MODULES
    copy = shutil.copytree(Path(detectron2.__file__).parent, tmp_path / "detectron2")
    (copy / "solver" / "lr_scheduler.py").unlink()
    code = "import detectron2.solver.lr_scheduler"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "'detectron2.solver.lr_scheduler' is not in the stand-in" in done.stderr


def _trainer_with_precise_bn(folder: Path) -> None:
    cfg = get_cfg()
    cfg.TEST.PRECISE_BN.ENABLED, cfg.OUTPUT_DIR = True, str(folder)
    DefaultTrainer.build_hooks(SimpleNamespace(cfg=cfg))


def _postprocess(field: str) -> None:
    results = Instances((4, 4), pred_boxes=Boxes([[0, 0, 1, 1]]), **{field: torch.zeros(1, 1, 28, 28)})
    detector_postprocess(results, 8, 8)


@pytest.mark.parametrize(
    ("ask", "about"),
    [
        (lambda folder: _postprocess("pred_masks"), "pred_masks"),
        (lambda folder: _postprocess("pred_keypoints"), "pred_keypoints"),
        (_trainer_with_precise_bn, r"PRECISE_BN"),
        (lambda folder: COCOEvaluator("coco_2017_val", ("bbox", "keypoints")), "keypoints"),
        (lambda folder: COCOEvaluator("coco_2017_val", kpt_oks_sigmas=[0.1]), "keypoints"),
        (lambda folder: DatasetMapper(get_cfg(), is_train=True, use_keypoint=True), "KEYPOINT_ON"),
        (lambda folder: get_detection_dataset_dicts("coco_2017_val", min_keypoints=1), "Keypoints"),
        (lambda folder: transform_instance_annotations({"keypoints": [1, 2, 2]}, [], (4, 4)), "Keypoints"),
        (lambda folder: DetectionCheckpointer(torch.nn.Linear(1, 1)).load(_touched(folder / "a.pyth")), r"a\.pyth"),
    ],
    ids=["masks", "keypoints", "precise_bn", "task", "sigmas", "mapper", "records", "annotation", "pycls"],
)
def test_what_needs_detectron2_itself_says_so(tmp_path: Path, ask: Callable[[Path], Any], about: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"{about}.* needs? Detectron2 itself"):
        ask(tmp_path)


def _touched(path: Path) -> str:
    path.touch()
    return str(path)


def test_the_check_of_a_config_offers_the_samplers_that_there_are() -> None:
    choices = RULES["DATALOADER.SAMPLER_TRAIN"].choices
    assert set(choices) == set(samplers.__all__) - {"InferenceSampler", "GroupedBatchSampler"}


def test_a_missing_model_is_named_by_its_registry() -> None:
    from detectron2.modeling import build_model

    with pytest.raises(KeyError, match="GeneralizedRCNN"):
        build_model(get_cfg())


def test_it_is_imported_under_one_name_only() -> None:
    with pytest.raises(ImportError, match="must be imported as 'detectron2', not as 'd2_ext._standin.detectron2'"):
        importlib.import_module("d2_ext._standin.detectron2")
    assert "d2_ext._standin.detectron2" not in sys.modules


def test_it_never_imports_the_project() -> None:
    root = Path(detectron2.__file__).parent
    for path in root.rglob("*.py"):
        lines = path.read_text().splitlines()
        assert not [x for x in lines if x.lstrip().startswith(("import d2_ext", "from d2_ext"))], path
