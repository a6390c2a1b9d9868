"""Does the same with whichever Detectron2 ``D2_EXT_DETECTRON2`` names, and writes what it saw as JSON.

    D2_EXT_DETECTRON2=standin python side_by_side.py DATA_FOLDER OUTPUT_FOLDER [CHECKPOINT]

``test_side_by_side.py`` runs it once with each implementation and compares.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import d2_ext

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

NAME = "side_by_side"


class _Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR + "/inference")


def make_config(output: str) -> CfgNode:
    """RetinaNet with a ResNet-18 on pictures of 64 px."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR, cfg.SEED = "cpu", "RetinaNet", output, 5
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_retinanet_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 2, 0.005
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.PIXEL_STD = [57.4, 57.1, 58.4]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (48, 64), 64
    cfg.INPUT.CROP.ENABLED = True
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 2, 20, 0.005
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 5, (15,)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    return cfg


def _digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _initial_weights(cfg: CfgNode) -> dict[str, str]:
    seed_all_rng(cfg.SEED)
    return {name: _digest(value.numpy()) for name, value in build_model(cfg).state_dict().items()}


def _first_batches(cfg: CfgNode) -> list[list]:
    seed_all_rng(cfg.SEED)
    batches = zip(range(8), build_detection_train_loader(cfg))
    return [
        [
            [Path(record["file_name"]).name, _digest(record["image"]), record["instances"].gt_boxes.tensor.tolist()]
            for record in batch
        ]
        for _, batch in batches
    ]


def _train(cfg: CfgNode) -> tuple[_Trainer, dict[str, list]]:
    seed_all_rng(cfg.SEED)
    trainer = _Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    names = ("total_loss", "loss_cls", "loss_box_reg", "num_pos_anchors", "lr")
    return trainer, {name: trainer.storage.history(name).values() for name in names}


def _key_tree(value: Any) -> Any:
    """Keys and kinds of a checkpoint, without the numbers."""
    if isinstance(value, dict):
        return {str(key): _key_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_key_tree(item) for item in value]
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _fill(model: torch.nn.Module) -> None:
    """Weights by a formula, with which the untrained net detects something."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(number)
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
            if name.endswith("cls_score.weight"):
                parameter.mul_(0.2)
            elif name.endswith("cls_score.bias"):
                parameter.fill_(-2.0)
            elif name.endswith("bbox_pred.weight"):
                parameter.mul_(0.02)


def _evaluate(cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
    results = _Trainer.test(cfg, model.eval())
    detections = json.loads(Path(cfg.OUTPUT_DIR, "inference", "coco_instances_results.json").read_text())
    return {"AP": dict(results["bbox"]), "detections": detections}


def run(data: str, output: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Everything that is compared; ``checkpoint`` is evaluated instead of this run's own."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    register_coco_instances(NAME, {}, f"{data}/annotations.json", data)
    cfg = make_config(output)
    seen: dict[str, Any] = {"implementation": d2_ext.ensure_detectron2(), "config": cfg.dump().replace(output, "")}
    seen["initial_weights"] = _initial_weights(cfg)
    seen["batches"] = _first_batches(cfg)
    trainer, seen["scalars"] = _train(cfg)
    seen["checkpoint"] = _key_tree(torch.load(f"{output}/model_final.pth"))
    seen["files"] = sorted(p.name for p in Path(output).iterdir() if not p.name.startswith("events."))
    DetectionCheckpointer(trainer.model).load(checkpoint or f"{output}/model_final.pth")
    seen["trained"] = _evaluate(cfg, trainer.model)
    _fill(trainer.model)
    seen["filled"] = _evaluate(cfg, trainer.model)
    return seen


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True)
    Path(sys.argv[2], "seen.json").write_text(json.dumps(run(*sys.argv[1:])))
