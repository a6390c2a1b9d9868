"""What the stand-in does beyond the real Detectron2, or instead of it."""

from __future__ import annotations

import os
import subprocess
import sys

import d2_ext._detectron2 as choice

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import hooks
from detectron2.solver.build import build_optimizer
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


def test_precise_statistics_without_batch_norm_are_off_at_every_iteration() -> None:
    hook = hooks.PreciseBN(1, nn.Linear(1, 1), [], 2)
    hook.trainer = type("Trainer", (), {"iter": 0, "max_iter": 5})()
    hook.after_step()


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
