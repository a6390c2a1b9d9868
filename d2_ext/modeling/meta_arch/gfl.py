"""GFL (Generalized Focal Loss), dense and with CEASC's sparse towers.

Papers: Generalized Focal Loss, arXiv:2006.04388, with the assignment of ATSS, arXiv:1912.02424; CEASC,
arXiv:2303.14488, whose default detector is GFL on ResNet-18 with 512 channels.
Checked against: the authors' released code of CEASC at commit 2abfd1a, a fork of mmdet 2.24.
Differs: images of one inference batch never influence each other; ignore regions are honoured.

Letters: N images, L levels, R positions of all levels (one anchor each), K classes, P positives, n bins of a side.
"""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.modeling.assigners.atss import assign_atss
from d2_ext.modeling.box_codec import decode_ltrb, encode_ltrb
from d2_ext.modeling.heads.gfl_head import GflCeascHead, GflCeascPredictions, GflHead, GflPredictions
from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.losses.gfl import distribution_focal_loss, expected_distances, quality_focal_loss
from d2_ext.modeling.losses.iou import box_giou_loss, elementwise_iou
from d2_ext.modeling.losses.normalizer import average_over_workers
from d2_ext.modeling.meta_arch.anchor_rows import AnchorRowDetector, per_anchor
from d2_ext.modeling.meta_arch.point_detector import check_choice, common_arguments
from d2_ext.modeling.meta_arch.sparse_masks import SparseMaskDetector
from d2_ext.modeling.postprocessing import PRE_NMS_UNITS

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn


@META_ARCH_REGISTRY.register()
class GFL(AnchorRowDetector):
    """Dense GFL: the baseline of ``GFLCEASC``.

    In training it returns ``loss_cls`` (quality focal loss, divided by the positives), ``loss_box_reg`` (1 - GIoU) and
    ``loss_dfl``, both weighted by the score of each positive and divided by the sum of these weights. Both divisors
    are averaged over the workers.

    Args:
        backbone: gives the feature maps.
        head: a ``GflHead``.
        head_in_features: names of the levels, finest first.
        anchor_generator: one square anchor a position.
        num_classes: K.
        atss_topk: candidates per box and level.
        quality_loss_beta: exponent of the quality focal loss.
        box_loss_weight, distribution_loss_weight: of the two box losses.
        pixel_mean, pixel_std: per channel, in the order of ``INPUT.FORMAT``.
        test_score_thresh: scores must be larger.
        test_topk_candidates: the most candidates per level and image, in the unit below.
        pre_nms_unit: ``"anchor"`` or ``"pair"``, see ``select_candidates``.
        test_nms_thresh: IoU of class-wise NMS.
        max_detections_per_image: the most detections of an image.

    Raises:
        ConfigError: for values that cannot work.
    """

    head_class: type[nn.Module] = GflHead

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        atss_topk: int = 9,
        quality_loss_beta: float = 2.0,
        box_loss_weight: float = 2.0,
        distribution_loss_weight: float = 0.25,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        pre_nms_unit: str = "anchor",
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        if set(anchor_generator.num_anchors) != {1}:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR gives {anchor_generator.num_anchors} anchors a position; GFL has one: one "
                "size per level (8 strides) and ASPECT_RATIOS [[1.0]]."
            )
        check_choice("MODEL.GFL.PRE_NMS_UNIT", pre_nms_unit, PRE_NMS_UNITS)
        self.anchor_generator = anchor_generator
        self.num_classes = num_classes
        self.atss_topk = atss_topk
        self.quality_loss_beta = quality_loss_beta
        self.box_loss_weight = box_loss_weight
        self.distribution_loss_weight = distribution_loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.pre_nms_unit = pre_nms_unit
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.GFL`` and ``TEST``; builds the backbone and the head."""
        gfl = cfg.MODEL.GFL
        arguments, input_shape = common_arguments(cfg, gfl, "MODEL.GFL")
        arguments.pop("sparsity_losses")  # of sparse heads
        return {
            **arguments,
            "head": cls.head_class(cfg, input_shape),
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "atss_topk": gfl.ATSS_TOPK,
            "quality_loss_beta": gfl.QUALITY_LOSS_BETA,
            "box_loss_weight": gfl.BOX_LOSS_WEIGHT,
            "distribution_loss_weight": gfl.DISTRIBUTION_LOSS_WEIGHT,
            "pre_nms_unit": gfl.PRE_NMS_UNIT,
        }

    # Training

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: GflPredictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute all losses of a batch; see the class for their names."""
        anchors = self.anchor_generator(features)
        labels, boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, predictions, labels, boxes)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
        """Label the positions of N images.

        Args:
            anchors: of L levels, XYXY in px of the padded batch; R in total.
            gt_instances: N images' ``gt_boxes`` and ``gt_classes``, ignore regions (class -1) included.

        Returns:
            Labels (N, R): 0..K-1 foreground, K background, -1 ignored (background whose cell, the square of one stride
            around it, lies in an ignore region; or a cell beyond the image's own padded size); and matched boxes
            (N, R, 4) XYXY px, 0 where there is no foreground.
        """
        all_anchors = Boxes.cat(anchors).tensor
        cells = _cells(anchors, self.strides())
        labels, matched_boxes = [], []
        for instances in gt_instances:
            objects, regions = split_ignore_regions(instances)
            inside = self.inside_image(anchors, instances.image_size)
            rows = torch.cat(inside).nonzero()[:, 0]
            counts = [int(x.sum()) for x in inside]
            gt_boxes = objects.gt_boxes.tensor
            matched = assign_atss(all_anchors[rows], counts, gt_boxes, topk=self.atss_topk)
            # The appended row is what -1 points at.
            own = torch.cat([objects.gt_classes, objects.gt_classes.new_tensor([self.num_classes])])[matched]
            own[(own == self.num_classes) & boxes_in_regions(cells[rows], regions)] = IGNORED
            labels.append(own.new_full((len(all_anchors),), IGNORED).index_copy(0, rows, own))
            boxes = torch.cat([gt_boxes, gt_boxes.new_zeros(1, 4)])[matched]
            matched_boxes.append(boxes.new_zeros(len(all_anchors), 4).index_copy(0, rows, boxes))
        return torch.stack(labels), torch.stack(matched_boxes)

    def losses(
        self, anchors: list[Boxes], predictions: GflPredictions, labels: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """Quality focal, GIoU and distribution focal loss.

        Args:
            anchors: of L levels, R in total.
            predictions: dense, of training.
            labels, boxes: see ``label_anchors``.
        """
        logits = torch.cat(per_anchor(predictions.logits, self.num_classes), dim=1).float()  # (N, R, K)
        distributions = torch.cat(per_anchor(predictions.distributions, 4 * (self.head.reg_max + 1)), dim=1)
        positive = (labels >= 0) & (labels != self.num_classes)
        image, position = positive.nonzero().unbind(dim=1)

        stride = _per_position(anchors, self.strides())[position, None]  # (P, 1)
        centers = Boxes.cat(anchors).get_centers()[position] / stride
        target = boxes[image, position] / stride
        sides = distributions[image, position].unflatten(1, (4, -1)).float()
        found = decode_ltrb(centers, expected_distances(sides))  # (P, 4) XYXY in strides
        weight = logits[image, position].detach().sigmoid().amax(dim=1)
        quality = logits.new_zeros(labels.shape)
        quality[image, position] = elementwise_iou(found.detach(), target)

        num_positive = positive.sum(dim=1).clamp(min=1).sum()
        get_event_storage().put_scalar("num_pos_anchors", len(image) / len(labels))
        num_positive, weight_sum = (x.clamp(min=1) for x in average_over_workers(num_positive, weight.sum()))
        loss_cls = quality_focal_loss(
            logits.flatten(0, 1), labels.flatten(), quality.flatten(), beta=self.quality_loss_beta
        )
        loss_box = (box_giou_loss(found, target) * weight).sum()
        loss_dfl = (distribution_focal_loss(sides, encode_ltrb(centers, target)) * weight).sum()
        return {
            "loss_cls": loss_cls / num_positive,
            "loss_box_reg": self.box_loss_weight * loss_box / weight_sum,
            "loss_dfl": self.distribution_loss_weight * loss_dfl / weight_sum,
        }

    # Inference

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: GflPredictions
    ) -> list[Instances]:
        """Turn the predictions of N images into detections, in px of each resized, unpadded image."""
        anchors = self.anchor_generator(features)
        return self.detect_rows(predictions.logits, predictions.distributions, anchors, images.image_sizes)

    def decode_boxes(self, level: int, anchors: Tensor, values: Tensor) -> Tensor:
        """Boxes whose sides are the expected distances of distributions (m, 4 * n) from the anchors' centres."""
        distances = expected_distances(values.unflatten(1, (4, -1))) * self.strides()[level]
        return decode_ltrb((anchors[:, :2] + anchors[:, 2:]) / 2, distances)


@META_ARCH_REGISTRY.register()
class GFLCEASC(SparseMaskDetector, GFL):
    """GFL whose head computes, at inference, only the positions that its masks select.

    In training it returns ``loss_norm`` and ``loss_ratio`` beside GFL's losses. The target of a level's active share is
    the share of its positions that are positive; with one anchor a position both ``ratio_target`` mean the same.

    Args:
        norm_loss_weight: alpha, weight of the norm loss.
        ratio_loss_weight: beta, weight of the mask ratio loss.
        ratio_target: see ``positive_ratios``.
        gfl: the arguments of ``GFL``; ``head`` is a ``GflCeascHead``.

    Raises:
        ConfigError: for values that cannot work.
    """

    head_class = GflCeascHead

    @configurable
    def __init__(
        self,
        *,
        norm_loss_weight: float = 10.0,
        ratio_loss_weight: float = 1.0,
        ratio_target: str = "anchors",
        **gfl: Any,
    ) -> None:
        super().__init__(**gfl)
        self.set_sparsity(
            norm_loss_weight=norm_loss_weight, ratio_loss_weight=ratio_loss_weight, ratio_target=ratio_target
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.GFL``, ``MODEL.CEASC`` and ``TEST``; builds the backbone and the head."""
        ceasc = cfg.MODEL.CEASC
        return {
            **super().from_config(cfg),
            "norm_loss_weight": ceasc.NORM_LOSS_WEIGHT,
            "ratio_loss_weight": ceasc.RATIO_LOSS_WEIGHT,
            "ratio_target": ceasc.RATIO_TARGET,
        }

    def losses(
        self, anchors: list[Boxes], predictions: GflCeascPredictions, labels: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """GFL's losses and the two of the sparse towers; see ``GFL.losses``."""
        positive = (labels >= 0) & (labels != self.num_classes)
        return {
            **super().losses(anchors, predictions, labels, boxes),
            **self.sparsity_losses(predictions, positive),
        }


def _per_position(anchors: list[Boxes], strides: list[int]) -> Tensor:
    """Stride of each of R positions, float (R,)."""
    return torch.cat([a.tensor.new_full((len(a),), float(s)) for a, s in zip(anchors, strides)])


def _cells(anchors: list[Boxes], strides: list[int]) -> Tensor:
    """The square of one stride around each position, (R, 4) XYXY px."""
    centers, half = Boxes.cat(anchors).get_centers(), _per_position(anchors, strides)[:, None] / 2
    return torch.cat([centers - half, centers + half], dim=1)
