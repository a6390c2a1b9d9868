"""Images of detections at the end of a run, and of a sparse head's masks while it is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable

from d2_ext.visualization import draw_masks

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class ImagesAfterTraining(HookBase):
    """Draws when training has ended as planned.

    Args:
        draw: draws.
    """

    def __init__(self, draw: Callable[[], object]) -> None:
        self._draw = draw

    def after_train(self) -> None:
        # A training that failed or was stopped leaves its checkpoint; images of it would only delay the error.
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            self._draw()


class MaskImages(HookBase):
    """Puts the masks of one and the same image into the event storage every few iterations, and after the last.

    They are the masks of inference, without the noise of training. Models without sparse towers are passed over.

    Args:
        cfg: ``TEST.MASK_PERIOD`` is the period in iterations; the image is the first one of ``DATASETS.TEST``, or of
            ``DATASETS.TRAIN`` if there is no test set.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._period = cfg.TEST.MASK_PERIOD

    def before_train(self) -> None:
        """Read the image."""
        model = self.trainer.model
        self._model = getattr(model, "module", model)
        if not hasattr(self._model, "activation_masks"):
            logger.warning(
                "TEST.MASK_PERIOD is %d, but %s has no sparse towers: no mask images.",
                self._period,
                type(self._model).__name__,
            )
            self._period = 0
            return
        name = (*self._cfg.DATASETS.TEST, *self._cfg.DATASETS.TRAIN)[0]
        record = DatasetCatalog.get(name)[0]
        self._image = read_image(record["file_name"], "BGR")
        self._inputs = DatasetMapper(self._cfg, is_train=False)(record)

    def after_step(self) -> None:
        """Draw, if it is time."""
        done = self.trainer.iter + 1
        if self._period and (done % self._period == 0 or done == self.trainer.max_iter):
            with inference_context(self._model), torch.no_grad():
                masks = self._model.activation_masks([self._inputs])[0]
            drawn = draw_masks(self._image, masks)
            rgb = np.ascontiguousarray(drawn[:, :, ::-1].transpose(2, 0, 1))
            self.trainer.storage.put_image("masks", rgb)
