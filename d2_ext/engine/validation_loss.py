"""The losses of a detector on the images of the first test set, to be seen beside those of the training."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from d2_ext.data.loader import build_validation_mapper
from d2_ext.data.randomness import VALIDATION, generators_preserved, seed_generators
from d2_ext.engine.hooks.scalars import own_normalizers, set_normalizers
from d2_ext.errors import DatasetError
from d2_ext.layers.drop_path import DropPath
from d2_ext.modeling.losses.normalizer import MovingAverage, each_worker_alone

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

logger = logging.getLogger(__name__)

# In training mode these change what they keep, or drop values by chance.
STAY_IN_EVALUATION = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, DropPath, MovingAverage)


@torch.no_grad()
def validation_loss(cfg: CfgNode, model: nn.Module, max_images: int | None = None) -> dict[str, float]:
    """Losses over the first of ``DATASETS.TEST``, without augmentation and without a trace in the model.

    Each image is a batch of its own, and the result is the mean over the images: it does not depend on the number of
    processes, and needs no more memory than the evaluation. Random numbers, such as the noise of masks, are the same
    each time.

    Args:
        cfg: of the run.
        model: not wrapped. To be called in all processes.
        max_images: look at so many in each process at most; None for all.

    Returns:
        Name of a loss -> mean over the images, and their sum as ``total``; the same in all processes.

    Raises:
        DatasetError: an image has no annotations, or cannot be used.
    """
    name = cfg.DATASETS.TEST[0]
    loader: Any = build_detection_test_loader(cfg, name, mapper=build_validation_mapper(cfg))
    sums: dict[str, float] = {}
    images = 0
    with _as_in_training(model), EventStorage(), each_worker_alone(), generators_preserved():
        for batch in itertools.islice(loader, max_images):
            if "instances" not in batch[0]:
                raise DatasetError(
                    f"TEST.VAL_LOSS needs annotations, but {batch[0]['file_name']} of the data set '{name}' has none. "
                    "Turn it off, or name an annotated data set first in DATASETS.TEST."
                )
            kept = own_normalizers(model)
            seed_generators(0, VALIDATION)
            for key, value in model(batch).items():
                sums[key] = sums.get(key, 0.0) + float(value)
            set_normalizers(model, kept)
            images += 1
    shares = comm.all_gather((images, sums))  # a process may have had no image at all
    count = max(sum(n for n, _ in shares), 1)
    keys = dict.fromkeys(key for _, part in shares for key in part)
    losses = {key: sum(part.get(key, 0.0) for _, part in shares) / count for key in keys}
    losses = {"total": sum(losses.values()), **losses}
    words = "  ".join(f"{key}: {value:.4g}" for key, value in losses.items())
    logger.info("Validation loss over %d images of %s: %s", count, name, words)
    return losses


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Let a model return its losses, but keep its running statistics and averages; afterwards it is as before."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, STAY_IN_EVALUATION):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
