"""DeFCN: one location per object, so that inference needs no NMS.

Paper: End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544.
Checked against: outputs of the authors' code for all assigners (targets, losses, gradients, detections).
Differs: images and batches without boxes train; the focal loss of a product of probabilities keeps its gradient at
extreme logits (``MODEL.DEFCN.FILTER_FOCAL: "probability"`` restores the original's); NMS happens only if asked for.

Letters: N images, L levels, R locations of all levels, K classes, M boxes of one image, P positives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from d2_ext.errors import ConfigError, check_choice
from d2_ext.modeling.assigners.atss import assign_aux
from d2_ext.modeling.assigners.best_anchor import assign_best_anchor, square_anchors
from d2_ext.modeling.assigners.center_sampling import size_ranges
from d2_ext.modeling.assigners.nearest_center import assign_nearest_center
from d2_ext.modeling.assigners.poto import (
    assign_argmax,
    assign_one_to_one,
    foreground_loss_quality,
    poto_quality,
)
from d2_ext.modeling.box_codec import PointGrid, decode_ltrb
from d2_ext.modeling.heads.base import Head, HeadOutput
from d2_ext.modeling.heads.defcn_head import DeFCNHead
from d2_ext.modeling.heads.sparse import SparsePointHead
from d2_ext.modeling.losses.focal import PRODUCT_FOCAL_FORMS, product_focal_loss, sigmoid_focal_loss
from d2_ext.modeling.losses.iou import box_giou_loss
from d2_ext.modeling.losses.normalizer import average_over_workers
from d2_ext.modeling.meta_arch.dense import PointDetector, Targets, common_arguments
from d2_ext.modeling.meta_arch.sparsity import read_towers, refuse_options
from d2_ext.modeling.selection import SelectionRule

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
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
        focal_loss_alpha: weight of positives in the classification losses.
        focal_loss_gamma: their exponent.
        filter_focal: see ``product_focal_loss``.
        box_loss_weight: factor of ``loss_box_reg``, also inside the ``loss`` assigner.
        aux_topk: candidates per level of the auxiliary loss; None = no such loss.
        aux_weight: its factor.
        dense: the arguments of :class:`BaseDenseDetector`.

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

    def training_losses(
        self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch; see the class for their names."""
        grid = self.make_grid(features)
        logits, raw_boxes = output.logits.per_image(), output.boxes.per_image()  # (N, R, K), (N, R, 4)
        filters = None if output.quality is None else output.quality.per_image()  # (N, R, 1)

        # 1. One location for each object, by the present predictions.
        targets = self.find_targets(features, output, gt_instances)
        losses = self.losses(grid, logits, raw_boxes, filters, targets)
        positive = targets.positive

        # 2. Some locations for each object, by the class logits alone (section 3.4).
        if self.aux_topk is not None:
            aux = self.assign_many(grid, gt_instances, logits.detach(), raw_boxes.detach(), self.aux_topk)
            (num_positive,) = average_over_workers(aux.positive.sum())
            loss = sigmoid_focal_loss(
                logits.flatten(0, 1),
                aux.labels.flatten(),
                alpha=self.focal_loss_alpha,
                gamma=self.focal_loss_gamma,
                class_weights=self.class_weights,
            )
            losses["loss_cls_aux"] = self.aux_weight * loss / num_positive.clamp(min=1)
            positive = positive | aux.positive

        # 3. Masks follow the locations of both.
        losses |= self.sparsity_losses(output, positive, targets.ignored)
        num_boxes = sum(int((instances.gt_classes >= 0).sum()) for instances in gt_instances)
        get_event_storage().put_scalar("num_fg_per_gt", int(targets.positive.sum()) / max(num_boxes, 1))
        return losses

    def find_targets(self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]) -> Targets:
        """Give each object of N images one location, by the present predictions."""
        filters = None if output.quality is None else output.quality.per_image().detach()
        logits, raw_boxes = output.logits.per_image().detach(), output.boxes.per_image().detach()
        return self.assign(self.make_grid(features), gt_instances, logits, raw_boxes, filters)

    def assign(
        self,
        grid: PointGrid,
        gt_instances: Sequence[Instances],
        logits: Tensor,
        raw_boxes: Tensor,
        filters: Tensor | None,
    ) -> Targets:
        """Give each object of N images one location.

        Args:
            grid: the R locations.
            gt_instances: of N images.
            logits: predictions without gradient, see :meth:`losses`.
            raw_boxes: likewise.
            filters: likewise.
        """

        def assign_image(image: int, objects: Instances) -> Tensor:
            boxes, classes = objects.gt_boxes.tensor, objects.gt_classes
            # Rules that look at the boxes only.
            if self.assigner == "center":
                return assign_nearest_center(grid, boxes, self.ranges)
            if self.assigner == "anchor":
                return assign_best_anchor(square_anchors(grid, self.anchor_sizes), boxes)
            # 1. How well the predictions at the locations near an object's center fit it (Eq. 2).
            if self.assigner == "loss":
                candidates = foreground_loss_quality(
                    grid,
                    boxes,
                    classes,
                    logits[image],
                    raw_boxes[image],
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
                    logits[image],
                    None if filters is None else filters[image],
                    raw_boxes[image],
                    alpha=self.poto_alpha,
                    radius=self.center_sampling_radius,
                )
            # 2. The matching that fits best on the whole (Eq. 3), or simply the best location of each object.
            match = assign_argmax if self.assigner == "poto_argmax" else assign_one_to_one
            return match(candidates, len(boxes), len(grid.points))

        return self.make_targets(grid.cells, gt_instances, assign_image)

    def assign_many(
        self, grid: PointGrid, gt_instances: Sequence[Instances], logits: Tensor, distances: Tensor, topk: int
    ) -> Targets:
        """Give each object some locations, for the auxiliary loss; see :meth:`assign` for the arguments."""

        def assign_image(image: int, objects: Instances) -> Tensor:
            scores = logits[image].float().sigmoid()
            boxes, classes = objects.gt_boxes.tensor, objects.gt_classes
            return assign_aux(grid, boxes, classes, scores, distances[image], alpha=self.poto_alpha, topk=topk)

        return self.make_targets(grid.cells, gt_instances, assign_image)

    def losses(
        self, grid: PointGrid, logits: Tensor, raw_boxes: Tensor, filters: Tensor | None, targets: Targets
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
        positive = targets.positive.flatten().nonzero()[:, 0]  # (P,)
        (num_positive,) = average_over_workers(torch.tensor(float(len(positive)), device=labels.device))
        num_positive = num_positive.clamp(min=1)

        focal: dict[str, Any] = {
            "alpha": self.focal_loss_alpha,
            "gamma": self.focal_loss_gamma,
            "class_weights": self.class_weights,
        }
        if filters is None:
            loss_cls = sigmoid_focal_loss(logits.flatten(0, 1), labels, **focal)
        else:
            loss_cls = product_focal_loss(
                logits.flatten(0, 1), filters.flatten(0, 1), labels, **focal, form=self.filter_focal
            )
        location = positive % len(grid.points)
        references = grid.points if self.assigner != "anchor" else square_anchors(grid, self.anchor_sizes)
        predicted = self.decode_boxes(0, references[location], raw_boxes.flatten(0, 1)[positive])
        loss_box = box_giou_loss(predicted, targets.boxes.flatten(0, 1)[positive]).sum()
        return {
            "loss_cls": loss_cls / num_positive,
            "loss_box_reg": self.box_loss_weight * loss_box / num_positive,
        }

    # Inference

    def selection_rule(self) -> SelectionRule:
        """How detections are chosen: by the product of class and filter, each location once on average."""
        return SelectionRule(**self.limits(), unit="location", thresh_with_quality=True, rank_with_quality=True)

    def level_references(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Points (H*W, 2) of each level, or with the assigner ``anchor`` square anchors (H*W, 4)."""
        if self.assigner != "anchor":
            return super().level_references(features)
        grid = self.make_grid(features)
        return list(square_anchors(grid, self.anchor_sizes).split(grid.counts))

    def cell_references(self, level: int) -> tuple[float, Tensor | None]:
        """Where the points and anchors are; see ``BaseDenseDetector``."""
        offset, _ = super().cell_references(level)
        half = self.anchor_sizes[level] / 2 if self.assigner == "anchor" else 0.0
        return offset, self.pixel_mean.new_tensor([[-half, -half, half, half]]) if half else None

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Boxes from points and distances in px, or from anchors and deltas."""
        if self.assigner == "anchor":
            return self.box2box_transform.apply_deltas(values, references)
        return decode_ltrb(references, values)


def build_defcn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> Head:
    """Build the head that ``MODEL.DEFCN`` describes.

    Raises:
        ConfigError: options that sparse towers cannot follow.
    """
    node = cfg.MODEL.DEFCN
    if not node.SPARSE:
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
    refuse_options(
        "MODEL.DEFCN",
        {
            "FILTER.MAX_POOLING": node.FILTER.ENABLED and node.FILTER.MAX_POOLING,
            "ASSIGNER 'anchor'": node.ASSIGNER == "anchor",
            f"NORM {node.NORM!r}": node.NORM not in ("GN", cfg.MODEL.CEASC.NORM),  # the dense twin's
        },
    )
    return SparsePointHead(
        input_shape=input_shape,
        num_classes=node.NUM_CLASSES,
        num_convs=node.NUM_CONVS,
        has_quality=node.FILTER.ENABLED,
        prior_prob=node.PRIOR_PROB,
        **read_towers(cfg, "MODEL.DEFCN.SPARSE"),
    )
