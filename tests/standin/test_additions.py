"""What the stand-in does beyond the real Detectron2, or instead of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import d2_ext._detectron2 as choice

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver.build import build_optimizer
from detectron2.structures import BoxMode
from torch import nn


def test_the_model_zoo_has_addresses_but_no_configs() -> None:
    from detectron2 import model_zoo  # Detectron2's needs pkg_resources, which new versions of setuptools lack

    url = model_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    assert url.endswith("detectron2/COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl")
    with pytest.raises(RuntimeError, match="not available"):
        model_zoo.get_checkpoint_url("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    with pytest.raises(RuntimeError, match="no config files of the model zoo"):
        model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_3x.yaml")


def test_clipping_leaves_parameters_without_gradient_alone() -> None:
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    model = nn.Linear(1, 1)
    model.weight.grad = torch.full((1, 1), 9.0)
    build_optimizer(cfg, model).step()
    assert (model.weight.grad.item(), model.bias.grad) == (1.0, None)


def test_it_needs_no_d2_ext_reports_its_environment_and_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "import detectron2.engine, detectron2.data, detectron2.modeling, detectron2.evaluation\n"
        "heavy = {'fvcore.nn', 'matplotlib.pyplot', 'tensorboard', 'omegaconf', 'hydra', 'd2_ext'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "runpy.run_module('detectron2.utils.collect_env', run_name='__main__')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(choice.STANDIN_DIR)}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    first, *report = out.stdout.splitlines()
    assert first == "[]"
    assert any("0.6+d2ext" in line for line in report)
    assert any("PyTorch" in line for line in report)


def test_what_not_every_annotation_has_is_not_drawn() -> None:
    from detectron2.utils.visualizer import Visualizer

    box = {"bbox": [5, 5, 60, 60], "bbox_mode": BoxMode.XYXY_ABS}
    triangle = {"segmentation": [[80.0, 40, 99, 40, 99, 60]], "category_id": 1}
    gray = np.full((100, 140, 3), 128, dtype=np.uint8)
    drawn = Visualizer(gray).draw_dataset_dict({"annotations": [box | triangle, box | {"category_id": 0}]})
    assert drawn.get_image()[45, 95].tolist() == [128, 128, 128]
    drawn = Visualizer(gray).draw_dataset_dict({"annotations": [box | triangle, box | {"segmentation": []}]})
    assert drawn.get_image()[45, 95].tolist() != [128, 128, 128]


def test_boxes_of_five_numbers_and_lists_of_different_length_are_refused() -> None:
    from detectron2.utils.visualizer import Visualizer

    canvas = Visualizer(np.zeros((9, 9, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="5 numbers; expected x0, y0, x1, y1"):
        canvas.overlay_instances(boxes=np.zeros((2, 5)))
    with pytest.raises(ValueError, match="'boxes': 2, 'labels': 1"):
        canvas.overlay_instances(boxes=np.zeros((2, 4)), labels=["a"])


@pytest.mark.parametrize("version", [0, 1])
def test_configs_with_names_of_an_older_version_are_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"VERSION: {version}\nMODEL: {{WEIGHT: a.pkl}}\n")
    with pytest.raises(AssertionError, match=rf"old\.yaml has keys of v{version}; only v2 is known"):
        get_cfg().merge_from_file(str(path))
