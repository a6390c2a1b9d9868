"""A whole detector as one function of tensors: image in, boxes, scores, classes out.

Letters: N images, H, W their rows and columns, K classes, D detections of all images together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from d2_ext.errors import ConfigError
from d2_ext.export.candidates import best_detections, clip_boxes, level_candidates
from d2_ext.export.levels import answers, check_exportable, level_outputs
from d2_ext.export.suppression import float32_at_most, suppress
from d2_ext.layers.fold import fold_norms
from d2_ext.modeling.heads.sparse import TowerPass, dense_maps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNEL_ORDERS = ("BGR", "RGB")


class ExportableDetector(nn.Module):
    """Normalizes, pads, detects and selects, in operators that export knows; the model itself is left as it is.

    Args:
        model: FCOS, DeFCN, RetinaNet, GFL or a sparse version of these; its norms are folded.
        model_format: order of the channels that the model expects (``INPUT.FORMAT``).
        input_format: order of the channels of the images that will be given.
        suppress: class-wise NMS, see ``suppression.py``.
        tower_pass: computes sparse towers.

    Raises:
        ConfigError: for another model or order.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        model_format: str = "BGR",
        input_format: str = "BGR",
        suppress: Callable[[Tensor, Tensor, float, int], Tensor] = suppress,
        tower_pass: TowerPass = dense_maps,
    ) -> None:
        super().__init__()
        check_exportable(model)
        for order in (model_format, input_format):
            if order not in CHANNEL_ORDERS:
                raise ConfigError(f"Order of the channels {order!r}: expected one of {', '.join(CHANNEL_ORDERS)}.")
        self.model = fold_norms(model, channels_last=False).to(memory_format=torch.contiguous_format)
        self.rule = answers(model).selection_rule()
        self.swap_channels = model_format != input_format
        self.suppress = suppress
        self.tower_pass = tower_pass

    def suppressing(self, suppress: Callable[[Tensor, Tensor, float, int], Tensor]) -> ExportableDetector:
        """The same detector, sharing its model, with another function for NMS."""
        other = copy.copy(self)
        other.suppress = suppress
        return other

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (N, 3, H, W), uint8 or float, 0 to 255, all of one size.

        Returns:
            Boxes (D, 4) XYXY in px of the given images, scores (D,), classes (D,) int64, and the number of the
            image (D,) int64; image after image, within an image best first.
        """
        height, width = images.shape[-2:]
        maps = self.model.backbone(self.preprocess(images))
        features = [maps[name] for name in self.model.head_in_features]
        boxes, scores = [], []
        for level in level_outputs(self.model, features, self.tower_pass):
            level_boxes, level_scores = level_candidates(level, self.rule)
            boxes.append(level_boxes)
            scores.append(level_scores)
        return self.select(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), height, width)

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalize images (N, 3, H, W) and pad them with 0 to the size that the backbone needs."""
        if self.swap_channels:
            images = images.flip(1)
        x = (images.to(self.model.pixel_mean.dtype) - self.model.pixel_mean) / self.model.pixel_std
        constraints = self.model.backbone.padding_constraints
        if constraints.get("square_size", 0) > 0:
            side = constraints["square_size"]
            return F.pad(x, [0, side - x.shape[-1], 0, side - x.shape[-2]])
        step = max(constraints.get("size_divisibility", self.model.backbone.size_divisibility), 1)
        height, width = ((side + step - 1) // step * step for side in x.shape[-2:])
        return F.pad(x, [0, width - x.shape[-1], 0, height - x.shape[-2]])

    def select(self, boxes: Tensor, scores: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn candidates into detections; see ``forward`` for the results.

        Args:
            boxes: (N, P, 4) XYXY px.
            scores: (N, P, K), 0 for no candidate.
            height: of the images, px.
            width: of the images, px.
        """
        rule = self.rule
        if rule.clip_first:
            boxes = clip_boxes(boxes, height, width)
        if rule.nms_thresh is not None:
            by_class = scores.transpose(1, 2).contiguous()
            threshold = float32_at_most(rule.nms_thresh)
            scores = self.suppress(boxes, by_class, threshold, rule.max_detections).transpose(1, 2)
        boxes, best, classes = best_detections(boxes, scores, rule.max_detections)
        boxes = clip_boxes(boxes, height, width)
        there = (best > 0) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        if rule.inclusive_pixels:
            boxes = clip_boxes(boxes + boxes.new_tensor([0, 0, 1, 1]), height, width)
        image, slot = there.nonzero().unbind(1)
        return boxes[image, slot], best[image, slot], classes[image, slot], image
