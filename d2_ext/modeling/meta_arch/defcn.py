"""DeFCN: one location per object, so that inference needs no NMS.

Paper: End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544.
Checked against: outputs of the authors' code for all assigners (targets, losses, gradients, detections).
Differs: images and batches without boxes train; the focal loss of a product of probabilities keeps its gradient at
extreme logits (``MODEL.DEFCN.FILTER_FOCAL: "probability"`` restores the original's); NMS happens only if asked for.

Letters: N images, L levels, R locations of all levels, K classes, M boxes of one image, P positives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.modeling.assigners.best_anchor import assign_best_anchor, square_anchors
from d2_ext.modeling.assigners.center_sampling import size_ranges
from d2_ext.modeling.assigners.nearest_center import assign_nearest_center
from d2_ext.modeling.assigners.poto import (
    assign_argmax,
    assign_one_to_one,
    foreground_loss_quality,
    poto_quality,
)
from d2_ext.modeling.assigners.topk import assign_aux
from d2_ext.modeling.box_codec import PointGrid, decode_ltrb
from d2_ext.modeling.heads.defcn_head import DeFCNHead, DeFCNPredictions
from d2_ext.modeling.heads.sparse_point_head import SparsePointHead, as_defcn, build_sparse_head, refuse_options
from d2_ext.modeling.losses.focal import PRODUCT_FOCAL_FORMS, product_focal_loss, sigmoid_focal_loss
from d2_ext.modeling.losses.iou import box_giou_loss
from d2_ext.modeling.losses.normalizer import average_over_workers
from d2_ext.modeling.meta_arch.point_detector import (
    PointDetector,
    PointTargets,
    check_choice,
    common_arguments,
    flatten_levels,
    level_of_image,
)
from d2_ext.modeling.point_candidates import select_points

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

logger = logging.getLogger(__name__)

ASSIGNERS = ("poto", "poto_argmax", "loss", "center", "anchor")


@META_ARCH_REGISTRY.register()
class DeFCN(PointDetector):
    """The detector; see the module for its source and ``MODEL.DEFCN`` for its variants.

    In training it returns ``loss_cls``, ``loss_box_reg`` and, with the auxiliary loss, ``loss_cls_aux``.

    Args:
        assigner: one of ``poto``, ``poto_argmax``, ``loss``, ``center``, ``anchor``.
        poto_alpha: exponent of the IoU in the quality.
        center_sampling_radius: half side of the square of candidates, in strides; 0 = the whole box.
        ranges: per level, which max(l, t, r, b) it answers for, px; read by ``center``.
        anchor_sizes: side of each level's anchors, px; read by ``anchor``.
        focal_loss_alpha, focal_loss_gamma: of the classification losses.
        filter_focal: see ``product_focal_loss``.
        box_loss_weight: factor of ``loss_box_reg``, also inside the ``loss`` assigner.
        aux_topk: candidates per level of the auxiliary loss; None = no such loss.
        aux_weight: its factor.
        dense: the arguments of :class:`PointDetector`.

    Raises:
        ConfigError: an unknown assigner, or the auxiliary loss with anchors.
    """

    @configurable
    def __init__(
        self,
        *,
        assigner: str = "poto",
        poto_alpha: float = 0.8,
        center_sampling_radius: float = 1.5,
        ranges: Sequence[tuple[float, float]] = (),
        anchor_sizes: Sequence[float] = (),
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        filter_focal: str = "log",
        box_loss_weight: float = 2.0,
        aux_topk: int | None = None,
        aux_weight: float = 1.0,
        **dense: Any,
    ) -> None:
        super().__init__(**dense)
        self.assigner = check_choice("MODEL.DEFCN.ASSIGNER", assigner, ASSIGNERS)
        if assigner == "anchor" and aux_topk is not None:
            raise ConfigError(
                "MODEL.DEFCN.AUX_LOSS.ENABLED with ASSIGNER 'anchor': the auxiliary loss needs distances from "
                "locations, which an anchor head does not predict. Disable it or choose another assigner."
            )
        self.poto_alpha = poto_alpha
        self.center_sampling_radius = center_sampling_radius
        self.ranges = ranges
        self.anchor_sizes = anchor_sizes
        self.box2box_transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.filter_focal = check_choice("MODEL.DEFCN.FILTER_FOCAL", filter_focal, PRODUCT_FOCAL_FORMS)
        self.box_loss_weight = box_loss_weight
        self.aux_topk = aux_topk
        self.aux_weight = aux_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.DEFCN`` and ``TEST``; builds the backbone and the head."""
        node = cfg.MODEL.DEFCN
        dense, input_shape = common_arguments(cfg, node, "MODEL.DEFCN")
        if node.ASSIGNER == "anchor" and len(node.ANCHOR_SIZES) != len(input_shape):
            raise ConfigError(
                f"MODEL.DEFCN.ANCHOR_SIZES {node.ANCHOR_SIZES} must hold one size in px for each of the "
                f"{len(input_shape)} levels {node.IN_FEATURES}."
            )
        if node.AUX_LOSS.ENABLED and not node.FILTER.ENABLED:
            logger.warning(
                "MODEL.DEFCN.AUX_LOSS.ENABLED without FILTER.ENABLED: both class losses pull at the same scores, so "
                "that duplicates stay. Enable the filter branch (with SPARSE also FILTER.MAX_POOLING False), or "
                "disable the auxiliary loss."
            )
        return {
            **dense,
            "head": build_defcn_head(cfg, input_shape),
            "assigner": node.ASSIGNER,
            "poto_alpha": node.POTO_ALPHA,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "ranges": size_ranges(node.SIZES_OF_INTEREST, len(input_shape)) if node.ASSIGNER == "center" else (),
            "anchor_sizes": node.ANCHOR_SIZES,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "filter_focal": node.FILTER_FOCAL,
            "box_loss_weight": node.BOX_LOSS_WEIGHT,
            "aux_topk": node.AUX_LOSS.TOPK if node.AUX_LOSS.ENABLED else None,
            "aux_weight": node.AUX_LOSS.WEIGHT,
        }

    # Training

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: DeFCNPredictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; see the class for their names."""
        grid = self.make_grid(features)
        sparse = None
        if self.is_sparse:
            predictions, sparse = as_defcn(predictions[0]), predictions[1]
        logits = flatten_levels(predictions.logits)  # (N, R, K)
        raw_boxes = flatten_levels(predictions.boxes)  # (N, R, 4)
        filters = flatten_levels(predictions.filters) if predictions.filters else None  # (N, R, 1)

        assign = self._one_to_one(grid, logits.detach(), raw_boxes.detach(), filters)
        targets = self.make_targets(grid, gt_instances, assign)
        losses = self.losses(grid, logits, raw_boxes, filters, targets)
        positive = (targets.labels >= 0) & (targets.labels < self.num_classes)
        if self.aux_topk is not None:
            aux_labels = self._aux_labels(grid, logits.detach(), raw_boxes.detach(), gt_instances)
            losses["loss_cls_aux"] = self._aux_loss(logits, aux_labels)
            positive |= (aux_labels >= 0) & (aux_labels < self.num_classes)
        if sparse is not None:
            losses |= self.sparse_losses(grid, sparse, positive)
        self._log_positives(targets, gt_instances)
        return losses

    def _one_to_one(self, grid: PointGrid, logits: Tensor, raw_boxes: Tensor, filters: Tensor | None) -> Any:
        """The assigner as a function of (number of the image, boxes, classes)."""

        def assign(index: int, boxes: Tensor, classes: Tensor) -> Tensor:
            if self.assigner == "center":
                return assign_nearest_center(grid, boxes, self.ranges)
            if self.assigner == "anchor":
                return assign_best_anchor(square_anchors(grid, self.anchor_sizes), boxes)
            if self.assigner == "loss":
                candidates = foreground_loss_quality(
                    grid,
                    boxes,
                    classes,
                    logits[index],
                    raw_boxes[index],
                    radius=self.center_sampling_radius,
                    box_loss_weight=self.box_loss_weight,
                    focal_alpha=self.focal_loss_alpha,
                    focal_gamma=self.focal_loss_gamma,
                )
            else:
                candidates = poto_quality(
                    grid,
                    boxes,
                    classes,
                    logits[index],
                    None if filters is None else filters[index].detach(),
                    raw_boxes[index],
                    alpha=self.poto_alpha,
                    radius=self.center_sampling_radius,
                )
            match = assign_argmax if self.assigner == "poto_argmax" else assign_one_to_one
            return match(candidates, len(boxes), len(grid.points))

        return assign

    def losses(
        self, grid: PointGrid, logits: Tensor, raw_boxes: Tensor, filters: Tensor | None, targets: PointTargets
    ) -> dict[str, Tensor]:
        """Classification and box loss, divided by the positives per worker.

        Args:
            grid: the R locations.
            logits: (N, R, K).
            raw_boxes: (N, R, 4) distances in px, or deltas of the anchors.
            filters: (N, R, 1) logits, or None.
            targets: of N images.
        """
        labels = targets.labels.flatten()  # (N * R,)
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]  # (P,)
        (num_positive,) = average_over_workers(torch.tensor(float(len(positive)), device=labels.device))
        num_positive = num_positive.clamp(min=1)

        focal = {"alpha": self.focal_loss_alpha, "gamma": self.focal_loss_gamma}
        if filters is None:
            loss_cls = sigmoid_focal_loss(logits.flatten(0, 1), labels, **focal)
        else:
            loss_cls = product_focal_loss(
                logits.flatten(0, 1), filters.flatten(0, 1), labels, form=self.filter_focal, **focal
            )
        predicted = self._decode(grid, raw_boxes.flatten(0, 1)[positive], positive % len(grid.points))
        loss_box = box_giou_loss(predicted, targets.boxes.flatten(0, 1)[positive]).sum()
        return {
            "loss_cls": loss_cls / num_positive,
            "loss_box_reg": self.box_loss_weight * loss_box / num_positive,
        }

    def _aux_labels(self, grid: PointGrid, logits: Tensor, distances: Tensor, gt_instances: list[Instances]) -> Tensor:
        """Labels (N, R) of the one-to-many assignment, by the class logits alone (section 3.4)."""

        def assign(index: int, boxes: Tensor, classes: Tensor) -> Tensor:
            scores = logits[index].float().sigmoid()
            return assign_aux(grid, boxes, classes, scores, distances[index], alpha=self.poto_alpha, topk=self.aux_topk)

        return self.make_targets(grid, gt_instances, assign).labels

    def _aux_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        (num_positive,) = average_over_workers(((labels >= 0) & (labels < self.num_classes)).sum())
        loss = sigmoid_focal_loss(
            logits.flatten(0, 1), labels.flatten(), alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        return self.aux_weight * loss / num_positive.clamp(min=1)

    def _log_positives(self, targets: PointTargets, gt_instances: list[Instances]) -> None:
        boxes = sum(int((instances.gt_classes >= 0).sum()) for instances in gt_instances)
        positive = int(((targets.labels >= 0) & (targets.labels < self.num_classes)).sum())
        get_event_storage().put_scalar("num_fg_per_gt", positive / max(boxes, 1))

    def _decode(self, grid: PointGrid, raw_boxes: Tensor, location: Tensor) -> Tensor:
        """Boxes (P, 4) XYXY px from the raw predictions (P, 4) at some locations (P,)."""
        if self.assigner == "anchor":
            return self.box2box_transform.apply_deltas(raw_boxes, square_anchors(grid, self.anchor_sizes)[location])
        return decode_ltrb(grid.points[location], raw_boxes)

    # Inference

    def detect_levels(
        self, grid: PointGrid, predictions: DeFCNPredictions, index: int
    ) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Give boxes (m, 4) XYXY px, scores (m,) and classes (m,) of one image, level by level."""
        if self.is_sparse:
            predictions = as_defcn(predictions[0])
        start = 0
        for level, count in enumerate(grid.counts):
            location, classes, scores = select_points(
                level_of_image(predictions.logits, level, index),
                level_of_image(predictions.filters, level, index) if predictions.filters else None,
                score_thresh=self.test_score_thresh,
                topk=min(self.test_topk_candidates, count),
                thresh_with_factor=True,
                rank_with_factor=True,
            )
            raw = level_of_image(predictions.boxes, level, index)[location]
            yield self._decode(grid, raw, location + start), scores, classes
            start += count


def build_defcn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> DeFCNHead | SparsePointHead:
    """Build the head that ``MODEL.DEFCN`` describes.

    Raises:
        ConfigError: options that sparse towers cannot follow.
    """
    node = cfg.MODEL.DEFCN
    if node.SPARSE:
        wrong = {
            "FILTER.MAX_POOLING": node.FILTER.ENABLED and node.FILTER.MAX_POOLING,
            "ASSIGNER 'anchor'": node.ASSIGNER == "anchor",
            f"NORM {node.NORM!r}": node.NORM != "GN",
        }
        refuse_options("MODEL.DEFCN", wrong)
        return build_sparse_head(
            cfg,
            input_shape,
            node.NUM_CLASSES,
            num_convs=node.NUM_CONVS,
            has_quality=node.FILTER.ENABLED,
            prior_prob=node.PRIOR_PROB,
        )
    return DeFCNHead(
        input_shape=input_shape,
        num_classes=node.NUM_CLASSES,
        num_convs=node.NUM_CONVS,
        norm=node.NORM,
        predicts_anchor_deltas=node.ASSIGNER == "anchor",
        filter_enabled=node.FILTER.ENABLED,
        filter_max_pooling=node.FILTER.MAX_POOLING,
        filter_kernel_size=node.FILTER.KERNEL_SIZE,
        filter_tau=node.FILTER.TAU,
        filter_norm=node.FILTER.NORM,
        prior_prob=node.PRIOR_PROB,
    )
