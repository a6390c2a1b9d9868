"""Stock RetinaNet that honors ignore regions: the dense baseline for data sets which have them."""

from __future__ import annotations

from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor


@META_ARCH_REGISTRY.register()
class IgnoreAwareRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, but background anchors inside an ignore region take no part in the loss.

    It has the same config keys and parameters, and without ignore regions the same numbers. Ignore regions come as
    rows of class -1, see ``d2_ext.modeling.ignore``.
    """

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
