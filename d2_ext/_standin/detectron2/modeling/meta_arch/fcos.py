"""FCOS (arXiv:2006.09214) as Detectron2 has it: not registered, and without a config.

Letters: N pictures; R anchor points of all levels; M objects of a picture; K classes. Labels: 0..K-1 foreground, K
background. Boxes are XYXY in px of the padded input; an anchor point is a square of the size of its stride.

Differs from the paper: no learnable scale of a level, and distances in strides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear, _dense_box_regression_loss
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances, pairwise_point_box_distance
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

__all__ = ["FCOS"]

logger = logging.getLogger(__name__)


class FCOS(DenseDetector):
    """One prediction a cell: class, distances to the four sides, and how central the cell lies."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        box2box_transform: Box2BoxTransformLinear | None = None,
        num_classes: int,
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.2,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Put the parts together.

        Args:
            center_sampling_radius: a point is foreground within this distance of an object's centre, in strides and
                along both axes.
            box2box_transform: what the distances mean; default: ``Box2BoxTransformLinear`` in strides.

        All other arguments are those of ``RetinaNet``.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        shapes = backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides], aspect_ratios=[1.0], strides=strides
        )
        self.box2box_transform = box2box_transform or Box2BoxTransformLinear(normalize_by_size=True)
        self.center_sampling_radius = float(center_sampling_radius)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_fcos_cls``, ``loss_fcos_loc`` and ``loss_fcos_ctr``."""
        anchors = self.anchor_generator(features)
        targets = self.label_anchors(anchors, gt_instances)
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        return self.losses(anchors, logits, targets[0], deltas, targets[1], centerness)

    @torch.no_grad()
    def _match_anchors(self, gt_boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """How well each of R points suits each of M objects: (M, R), 0 if not at all, larger for smaller objects."""
        points = Boxes.cat(anchors)
        centers, strides = points.get_centers(), points.tensor[:, 2] - points.tensor[:, 0]
        # Central sampling: the point lies near the object's centre.
        offsets = (centers[None] - gt_boxes.get_centers()[:, None]).abs()  # (M, R, 2)
        suits = offsets.amax(dim=2) < self.center_sampling_radius * strides
        # The point lies in the object.
        distances = pairwise_point_box_distance(centers, gt_boxes).transpose(0, 1)  # (M, R, 4)
        suits &= distances.amin(dim=2) > 0
        # The level is the one for objects of this size.
        lower, upper = strides * 4, strides * 8
        lower[: len(anchors[0])] = 0
        upper[len(upper) - len(anchors[-1]) :] = float("inf")
        reach = distances.amax(dim=2)
        suits &= (reach > lower) & (reach < upper)
        return suits.to(torch.float32) * (1e8 - gt_boxes.area()[:, None])

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (R,) and boxes (R, 4) of each picture, as in ``RetinaNet``; no point is ignored."""
        gt_labels, gt_boxes = [], []
        for objects in gt_instances:
            if len(objects) > 0:
                quality, matches = self._match_anchors(objects.gt_boxes, anchors).max(dim=0)
                is_background = quality < 1e-5
                # Background points take the first object's box, as in Detectron2; no loss reads it.
                matches[is_background] = 0
                labels = objects.gt_classes[matches]
                labels[is_background] = self.num_classes
                boxes = objects.gt_boxes.tensor[matches]
            else:
                boxes = torch.zeros_like(Boxes.cat(anchors).tensor)
                labels = torch.full((len(boxes),), self.num_classes, dtype=torch.long, device=boxes.device)
            gt_labels.append(labels)
            gt_boxes.append(boxes)
        return gt_labels, gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss of the logits, GIoU loss and cross-entropy of the centerness of the foreground.

        Arguments as in ``RetinaNet``; ``pred_centerness`` holds logits (N, H * W, 1) of each level.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        foreground = (labels >= 0) & (labels != self.num_classes)
        num_foreground = foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_foreground / len(gt_labels))
        normalizer = self._ema_update("loss_normalizer", max(num_foreground, 1), 300)
        logits = torch.cat(pred_logits, dim=1).float()
        targets = F.one_hot(labels, num_classes=self.num_classes + 1)[..., :-1].to(logits.dtype)
        loss_cls = sigmoid_focal_loss(
            logits, targets, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma, reduction="sum"
        )
        loss_loc = _dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, foreground, box_reg_loss_type="giou"
        )
        centerness = torch.cat(pred_centerness, dim=1).squeeze(dim=2)[foreground]
        target_centerness = self.compute_ctrness_targets(anchors, gt_boxes)[foreground]
        loss_ctr = F.binary_cross_entropy_with_logits(centerness, target_centerness, reduction="sum")
        return {
            "loss_fcos_cls": loss_cls / normalizer,
            "loss_fcos_loc": loss_loc / normalizer,
            "loss_fcos_ctr": loss_ctr / normalizer,
        }

    def compute_ctrness_targets(self, anchors: list[Boxes], gt_boxes: list[Tensor]) -> Tensor:
        """Centerness (N, R) of each point in its box (Eq. 3): 1 at the centre, 0 at the border; NaN outside."""
        points = Boxes.cat(anchors).tensor
        distances = torch.stack([self.box2box_transform.get_deltas(points, boxes) for boxes in gt_boxes])
        opposite = torch.stack((distances[..., [0, 2]], distances[..., [1, 3]]), dim=-2)  # (N, R, 2, 2)
        return (opposite.amin(dim=-1) / opposite.amax(dim=-1)).prod(dim=-1).sqrt()

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Detections of each picture, scored by ``sqrt(class score * centerness)`` (Eq. 4)."""
        anchors = self.anchor_generator(features)
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        scores = [torch.sqrt(x.sigmoid_() * y.sigmoid_()) for x, y in zip(logits, centerness)]
        return [
            self.inference_single_image(anchors, [x[i] for x in scores], [x[i] for x in deltas], image_size)
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """See ``RetinaNet.inference_single_image``."""
        detections = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(
            detections.pred_boxes.tensor, detections.scores, detections.pred_classes, self.test_nms_thresh
        )
        return detections[keep[: self.max_detections_per_image]]


class FCOSHead(RetinaNetHead):
    """RetinaNet's head for one anchor a cell, with a centerness from the tower of the boxes."""

    def __init__(self, *, input_shape: Sequence[ShapeSpec], conv_dims: Sequence[int], **kwargs: Any) -> None:
        """Take the arguments of ``RetinaNetHead`` except ``num_anchors``."""
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **kwargs)
        self.ctrness = nn.Conv2d(conv_dims[-1], 1, kernel_size=3, padding=1)
        nn.init.normal_(self.ctrness.weight, std=0.01)
        nn.init.zeros_(self.ctrness.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (N, K, H, W), distances (N, 4, H, W) and centerness (N, 1, H, W) of each level."""
        assert len(features) == self._num_features, f"{len(features)} maps for a head of {self._num_features}."
        levels = []
        for feature in features:
            class_tower, box_tower = self.cls_subnet(feature), self.bbox_subnet(feature)
            levels.append((self.cls_score(class_tower), self.bbox_pred(box_tower), self.ctrness(box_tower)))
        logits, deltas, centerness = map(list, zip(*levels))
        return logits, deltas, centerness
