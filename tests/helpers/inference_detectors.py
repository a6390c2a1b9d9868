"""Small detectors with fixed random weights, and images for them, for the tests of inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.config.load import load_config

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import helpers.point_scenes  # noqa: F401, registers the backbone
from helpers.scripts import ROOT

QUICKSTART = ROOT / "configs/quickstart"
RECIPES = sorted(path.stem for path in QUICKSTART.glob("*.yaml"))
CEASC = "retinanet_ceasc_R18_synthetic"
FURTHER = ["../UAVDT/gfl_R18_FPN512", "../UAVDT/gfl_ceasc_R18_FPN512", "../VisDrone/retinanet_R18_FPN512"]
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TEST", "0"]
NO_TRUNK = ["MODEL.BACKBONE.NAME", "tests_average_backbone"]
NO_TRUNK += ["MODEL.RETINANET.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']"]
NO_TRUNK += ["MODEL.FCOS.IN_FEATURES", "['p3', 'p4', 'p5']", "MODEL.DEFCN.IN_FEATURES", "['p3', 'p4', 'p5']"]


def small_cfg(recipe: str = CEASC, *options: Any, trunk: bool = False) -> CfgNode:
    """Config of a quick start's model, shrunk, without its ResNet unless asked for; images keep their size."""
    options = [str(option) for option in options]
    path = str(QUICKSTART / f"{recipe}.yaml")
    return load_config(path, [*SMALL, *([] if trunk else NO_TRUNK), *options])


def write_weights(cfg: CfgNode, folder: Path, **extra: Any) -> CfgNode:
    """Save ``config.yaml`` and random weights that see many things in noise; the config comes back with their path."""
    torch.manual_seed(0)
    model = build_model(cfg)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.ndim == 1 and "head" in name and "cls" in name and (parameter < -3).all():
                parameter += 3.5  # the prior of a new detector is that there is nothing
                # RetinaNet's scores would differ by 1e-5 only, and rounding would decide which box survives NMS.
                parameters[name.removesuffix("bias") + "weight"] *= 100
            elif name.endswith("mask_conv.weight"):  # sees edges: active here and there
                parameter -= parameter.mean(dim=(2, 3), keepdim=True)
                parameters[name.removesuffix("weight") + "bias"].zero_()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), **extra}, folder / "model_final.pth")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    cfg.freeze()
    return cfg


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image (height, width, 3) uint8 with coarse structure."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width])
