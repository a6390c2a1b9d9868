"""Images of any sizes through a detector, many at a time, each with the result it has alone."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any

from d2_ext.modeling.padding import padded_size

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import nn


class ImageBatches:
    """Resizes, batches and detects, with the numbers of ``DefaultPredictor`` for each image.

    Padding changes what a network sees near the border, and in its norms. So images are computed together only if
    they are padded to the same size, and each is padded as if it were alone.

    Args:
        model: a detector in evaluation mode, in Detectron2's format.
        cfg: its ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` are used.
        bfloat16: compute in bfloat16 (autocast) instead of the weights' own type.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, *, bfloat16: bool = False) -> None:
        self.model = model
        self.bfloat16 = bfloat16
        self._resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect on a batch.

        Args:
            images: (H, W, 3) uint8 each, channels in the order of ``INPUT.FORMAT``; may be empty.

        Returns:
            Per image the detections on the CPU, boxes XYXY px of the image as given.
        """
        inputs = [self.prepare(image) for image in images]
        results: dict[int, Instances] = {}
        groups: dict[Hashable, list[int]] = {}
        backbone = getattr(self.model, "backbone", None)
        for number, item in enumerate(inputs):
            size = tuple(item["image"].shape[-2:])
            # A model without a backbone of Detectron2's kind may pad in its own way: equal sizes only.
            groups.setdefault(size if backbone is None else padded_size(backbone, *size), []).append(number)
        for group in groups.values():
            device = next(self.model.parameters()).device.type if self.bfloat16 else ""
            with torch.autocast(device, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
                outputs = self.model([inputs[i] for i in group])
            results.update(zip(group, (output["instances"].to("cpu") for output in outputs)))
        return [results[i] for i in range(len(inputs))]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """What the model gets of one image: the resized ``image`` (3, H', W') uint8, and the frame of its boxes."""
        height, width = image.shape[:2]
        resized = self._resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}
