"""Stock RetinaNet that honors ignore regions and class weights: the dense baseline for data sets which have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.losses.focal import sigmoid_focal_loss
from d2_ext.modeling.meta_arch.dense import keep_class_weights

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor


@META_ARCH_REGISTRY.register()
class IgnoreAwareRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, but background anchors inside an ignore region take no part in the loss.

    It has the same config keys and parameters, and without ignore regions and weights the same numbers. Ignore regions
    come as rows of class -1, see ``d2_ext.modeling.ignore``.

    Args:
        class_weights: of the objects of each class in the classification loss, K positive numbers; none for 1.
        retinanet: the arguments of Detectron2's RetinaNet.

    Raises:
        ConfigError: another number of weights, or one that is not positive.
    """

    @configurable
    def __init__(self, *, class_weights: Sequence[float] = (), **retinanet: Any) -> None:
        super().__init__(**retinanet)
        keep_class_weights(self, class_weights, self.num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of Detectron2's RetinaNet, and ``MODEL.CLASS_WEIGHTS``."""
        return {**super().from_config(cfg), "class_weights": cfg.MODEL.CLASS_WEIGHTS}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of N images.

        Args:
            anchors: of L levels, XYXY in px of the padded input; R in total.
            gt_instances: N images' ``gt_boxes`` and ``gt_classes``, ignore regions included.

        Returns:
            N label vectors (R,): 0..K-1 foreground, K background, -1 ignored; and N tensors of matched boxes (R, 4),
            meaningful at foreground anchors.
        """
        split = [split_ignore_regions(x) for x in gt_instances]
        labels, boxes = super().label_anchors(anchors, [objects for objects, _ in split])
        all_anchors = Boxes.cat(anchors).tensor
        for image_labels, (_, regions) in zip(labels, split):
            ignored = (image_labels == self.num_classes) & boxes_in_regions(all_anchors, regions)
            image_labels[ignored] = IGNORED
        return labels, boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Detectron2's losses, the terms of objects in ``loss_cls`` times the weights of their classes."""
        losses = super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        if self.class_weights is None:
            return losses
        # Detectron2 has added each object once. The rest is added here, over the same divisor.
        labels = torch.stack(gt_labels)
        positive = (labels >= 0) & (labels < self.num_classes)
        logits, labels = torch.cat(pred_logits, dim=1)[positive], labels[positive]
        focus = {"alpha": self.focal_loss_alpha, "gamma": self.focal_loss_gamma}
        once = sigmoid_focal_loss(logits, labels, **focus)
        rest = sigmoid_focal_loss(logits, labels, **focus, class_weights=self.class_weights) - once
        return {**losses, "loss_cls": losses["loss_cls"] + rest / self.loss_normalizer}
