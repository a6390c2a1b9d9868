"""The trainer of d2_ext: Detectron2's ``DefaultTrainer``, also for several processes without GPUs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.data.mapper import CheckedMapper, IgnoreRegionMapper
from d2_ext.engine.optimizer import build_optimizer
from d2_ext.engine.parallel import wrap_data_parallel
from d2_ext.engine.precision import autocast_in_training, build_inner_trainer
from d2_ext.evaluation import build_evaluator
from d2_ext.visualization import write_pictures

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` with the evaluators, mapper, clipping and checkpoint reader of d2_ext.

    It differs in six points: evaluators are chosen by data set; ``INPUT.IGNORE_REGIONS`` selects the mapper that
    keeps ignore regions; ``CLIP_TYPE: "full_model"`` is understood; checkpoints are read without running code from
    them; mixed precision works on the CPU, in bfloat16; and several processes work on the CPU (over gloo) as they do
    on GPUs.

    Args:
        cfg: a frozen config with the keys of :func:`d2_ext.add_d2_ext_config`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor wraps the model for GPUs only, so its steps are taken here; the order of
        # model, optimizer and loader is its order, since each draws from the seeded generators.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        amp = cfg.SOLVER.AMP.ENABLED
        if amp and cfg.MODEL.DEVICE == "cpu":
            model = autocast_in_training(model)
        model = wrap_data_parallel(model)
        self._trainer = build_inner_trainer(model, loader, optimizer, mixed_precision=amp)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``detectron2.modeling.build_model``; ``MODEL.CHANNELS_LAST`` sets its memory format."""
        model = super().build_model(cfg)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`d2_ext.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Build the training loader; ``INPUT.IGNORE_REGIONS`` selects the mapper."""
        mapper = IgnoreRegionMapper if cfg.INPUT.IGNORE_REGIONS else CheckedMapper
        return build_detection_train_loader(cfg, mapper=mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build the loader of one test set; a picture that cannot be read is named."""
        return build_detection_test_loader(cfg, dataset_name, mapper=CheckedMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`d2_ext.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, cls.inference_folder(cfg, dataset_name))

    @classmethod
    def inference_folder(cls, cfg: CfgNode, dataset_name: str) -> str:
        """Folder for predictions on a data set and pictures of them."""
        folder = f"{cfg.OUTPUT_DIR}/inference"
        return folder if len(cfg.DATASETS.TEST) == 1 else f"{folder}/{dataset_name}"

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, and the pictures at the end of training."""
        return [*super().build_hooks(), _PicturesAfterTraining()]

    @classmethod
    def write_pictures(cls, cfg: CfgNode, model: nn.Module) -> list[str]:
        """Draw ``TEST.NUM_PICTURES`` pictures of each test set below the run folder; returns their paths."""
        written = []
        for name in cfg.DATASETS.TEST if cfg.TEST.NUM_PICTURES else ():
            folder = f"{cls.inference_folder(cfg, name)}/pictures"
            written += write_pictures(cfg, model, name, folder, count=cfg.TEST.NUM_PICTURES)
        return written


class _PicturesAfterTraining(HookBase):
    def after_train(self) -> None:
        # An interrupted training leaves its checkpoint; pictures of it would only delay the error.
        if self.trainer.iter + 1 >= self.trainer.max_iter and comm.is_main_process():
            model = self.trainer.model
            self.trainer.write_pictures(self.trainer.cfg, getattr(model, "module", model))
