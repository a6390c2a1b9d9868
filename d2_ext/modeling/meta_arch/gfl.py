"""GFL (Generalized Focal Loss), dense and with CEASC's sparse towers.

Papers: Generalized Focal Loss, arXiv:2006.04388, with the assignment of ATSS, arXiv:1912.02424; CEASC,
arXiv:2303.14488, whose default detector is GFL on ResNet-18 with 512 channels.
Checked against: the authors' released code of CEASC at commit 2abfd1a, a fork of mmdet 2.24.
Differs: images of one inference batch never influence each other; ignore regions are honored.

Letters: N images, L levels, R positions of all levels (one anchor each), K classes, P positives, n bins of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2_ext.errors import ConfigError, check_choice
from d2_ext.modeling.assigners.atss import assign_atss
from d2_ext.modeling.box_codec import decode_ltrb, encode_ltrb
from d2_ext.modeling.heads.base import Head, HeadOutput
from d2_ext.modeling.heads.gfl_head import GflHead
from d2_ext.modeling.heads.sparse import GflCeascHead
from d2_ext.modeling.losses.gfl import distribution_focal_loss, expected_distances, quality_focal_loss
from d2_ext.modeling.losses.iou import box_giou_loss, elementwise_iou
from d2_ext.modeling.losses.normalizer import average_over_workers
from d2_ext.modeling.meta_arch.dense import LEFT_OUT, AnchorDetector, Targets, common_arguments
from d2_ext.modeling.meta_arch.sparsity import read_towers
from d2_ext.modeling.selection import PRE_NMS_UNITS, SelectionRule

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor


@META_ARCH_REGISTRY.register()
class GFL(AnchorDetector):
    """Dense GFL: the baseline of ``GFLCEASC``.

    In training it returns ``loss_cls`` (quality focal loss, divided by the positives), ``loss_box_reg`` (1 - GIoU) and
    ``loss_dfl``, both weighted by the score of each positive and divided by the sum of these weights. Both divisors
    are averaged over the workers.

    Args:
        atss_topk: candidates per box and level.
        quality_loss_beta: exponent of the quality focal loss.
        box_loss_weight: of 1 - GIoU.
        distribution_loss_weight: of the distribution focal loss.
        pre_nms_unit: ``"anchor"`` or ``"pair"``, see ``SelectionRule``.
        anchors: the arguments of :class:`AnchorDetector`; one square anchor a position.

    Raises:
        ConfigError: for values that cannot work.
    """

    @configurable
    def __init__(
        self,
        *,
        atss_topk: int = 9,
        quality_loss_beta: float = 2.0,
        box_loss_weight: float = 2.0,
        distribution_loss_weight: float = 0.25,
        pre_nms_unit: str = "anchor",
        **anchors: Any,
    ) -> None:
        super().__init__(**anchors)
        if set(self.anchor_generator.num_anchors) != {1}:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR gives {self.anchor_generator.num_anchors} anchors a position; GFL has one: "
                "one size per level (8 strides) and ASPECT_RATIOS [[1.0]]."
            )
        self.pre_nms_unit = check_choice("MODEL.GFL.PRE_NMS_UNIT", pre_nms_unit, PRE_NMS_UNITS)
        self.atss_topk = atss_topk
        self.quality_loss_beta = quality_loss_beta
        self.box_loss_weight = box_loss_weight
        self.distribution_loss_weight = distribution_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.GFL`` and ``TEST``; builds the backbone and the head."""
        gfl = cfg.MODEL.GFL
        arguments, input_shape = common_arguments(cfg, gfl, "MODEL.GFL")
        return {
            **arguments,
            "head": cls.build_head(cfg, input_shape),
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "atss_topk": gfl.ATSS_TOPK,
            "quality_loss_beta": gfl.QUALITY_LOSS_BETA,
            "box_loss_weight": gfl.BOX_LOSS_WEIGHT,
            "distribution_loss_weight": gfl.DISTRIBUTION_LOSS_WEIGHT,
            "pre_nms_unit": gfl.PRE_NMS_UNIT,
        }

    @classmethod
    def build_head(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> Head:
        """The head that ``MODEL.GFL`` describes."""
        gfl = cfg.MODEL.GFL
        return GflHead(
            input_shape=input_shape,
            num_classes=gfl.NUM_CLASSES,
            num_convs=gfl.NUM_CONVS,
            norm=gfl.NORM,
            prior_prob=gfl.PRIOR_PROB,
            reg_max=gfl.REG_MAX,
        )

    # Training

    def training_losses(
        self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch; see the class for their names."""
        targets = self.find_targets(features, output, gt_instances)
        losses = self.losses(self.anchor_generator(features), output, targets)
        return losses | self.sparsity_losses(output, targets.positive, targets.ignored)

    def find_targets(self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]) -> Targets:
        """Give each of the R anchors of N images an object or none; the predictions do not matter."""
        return self.assign(self.anchor_generator(features), gt_instances)

    def assign(self, anchors: Sequence[Boxes], gt_instances: Sequence[Instances]) -> Targets:
        """Give each of the R positions of N images an object or none.

        A position is ignored if it is background whose cell, the square of one stride around it, lies in an ignore
        region; or if its cell is beyond the image's own padded size.

        Args:
            anchors: of L levels, XYXY in px of the padded batch.
            gt_instances: N images' ``gt_boxes`` and ``gt_classes``, ignore regions (class -1) included.
        """
        all_anchors = Boxes.cat(list(anchors))

        def assign_image(_: int, objects: Instances) -> Tensor:
            inside = self.inside_image(anchors, objects.image_size)
            rows = torch.cat(inside).nonzero()[:, 0]
            counts = [int(x.sum()) for x in inside]
            own = assign_atss(all_anchors.tensor[rows], counts, objects.gt_boxes.tensor, topk=self.atss_topk)
            return own.new_full((len(all_anchors),), LEFT_OUT).index_copy(0, rows, own)

        centers, half = all_anchors.get_centers(), self._strides_of(anchors)[:, None] / 2
        return self.make_targets(torch.cat([centers - half, centers + half], dim=1), gt_instances, assign_image)

    def losses(self, anchors: Sequence[Boxes], output: HeadOutput, targets: Targets) -> dict[str, Tensor]:
        """Quality focal, GIoU and distribution focal loss.

        Args:
            anchors: of L levels, R in total.
            output: of the head in training.
            targets: of N images.
        """
        # 1. The P positives: their boxes, found and wanted, in strides.
        logits = output.logits.per_image().float()  # (N, R, K)
        image, position = targets.positive.nonzero().unbind(dim=1)
        stride = self._strides_of(anchors)[position, None]  # (P, 1)
        centers = Boxes.cat(list(anchors)).get_centers()[position] / stride
        target = targets.boxes[image, position] / stride
        sides = output.boxes.per_image()[image, position].unflatten(1, (4, -1)).float()
        found = decode_ltrb(centers, expected_distances(sides))  # (P, 4) XYXY

        # 2. What weighs them: their best score; and what their score should be: the IoU.
        weight = logits[image, position].detach().sigmoid().amax(dim=1)
        quality = logits.new_zeros(targets.labels.shape)
        quality[image, position] = elementwise_iou(found.detach(), target)
        num_positive = targets.positive.sum(dim=1).clamp(min=1).sum()
        get_event_storage().put_scalar("num_pos_anchors", len(image) / len(targets.labels))
        num_positive, weight_sum = (x.clamp(min=1) for x in average_over_workers(num_positive, weight.sum()))

        # 3. The losses.
        loss_cls = quality_focal_loss(
            logits.flatten(0, 1),
            targets.labels.flatten(),
            quality.flatten(),
            beta=self.quality_loss_beta,
            class_weights=self.class_weights,
        )
        loss_box = (box_giou_loss(found, target) * weight).sum()
        loss_dfl = (distribution_focal_loss(sides, encode_ltrb(centers, target)) * weight).sum()
        return {
            "loss_cls": loss_cls / num_positive,
            "loss_box_reg": self.box_loss_weight * loss_box / weight_sum,
            "loss_dfl": self.distribution_loss_weight * loss_dfl / weight_sum,
        }

    def _strides_of(self, anchors: Sequence[Boxes]) -> Tensor:
        """Stride of each of R positions, float (R,)."""
        return torch.cat([a.tensor.new_full((len(a),), float(s)) for a, s in zip(anchors, self.strides)])

    # Inference

    def selection_rule(self) -> SelectionRule:
        """How detections are chosen; boxes are clipped before NMS, as in the released code."""
        return SelectionRule(**self.limits(), unit=self.pre_nms_unit, clip_first=True)

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Boxes whose sides are the expected distances of distributions (m, 4 * n) from the anchors' centers."""
        distances = expected_distances(values.unflatten(1, (4, -1))) * self.strides[level]
        return decode_ltrb((references[:, :2] + references[:, 2:]) / 2, distances)


@META_ARCH_REGISTRY.register()
class GFLCEASC(GFL):
    """GFL whose head computes, at inference, only the positions that its masks select.

    In training it returns those of its towers (``Sparsity.losses``) beside GFL's losses. The target of a level's active
    share is the share of its positions that are positive; with one anchor a position both ``MODEL.CEASC.RATIO_TARGET``
    mean the same.
    """

    @classmethod
    def build_head(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> Head:
        """The head that ``MODEL.GFL`` and ``MODEL.CEASC`` describe."""
        gfl = cfg.MODEL.GFL
        return GflCeascHead(
            input_shape=input_shape,
            num_classes=gfl.NUM_CLASSES,
            num_convs=gfl.NUM_CONVS,
            prior_prob=gfl.PRIOR_PROB,
            reg_max=gfl.REG_MAX,
            **read_towers(cfg, "GFLCEASC"),
        )
