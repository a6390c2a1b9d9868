"""FCOS: one location, one box; the original's two forms and AdelaiDet's variants by config.

Papers: FCOS: Fully Convolutional One-Stage Object Detection, arXiv:1904.01355; FCOS: A Simple and Strong Anchor-free
Object Detector, arXiv:2006.09214.
Checked against: outputs of the original code and of AdelaiDet (targets, losses, gradients, detections).
Differs: images without boxes are background, not an error; between equal areas the lower index wins; detections
are not clipped before NMS and overlaps are continuous (the original clips first and counts inclusive pixels).

Letters: N images, L levels, R locations of all levels, K classes, P positives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.modeling.assigners.center_sampling import assign_by_size, size_ranges
from d2_ext.modeling.assigners.topk import assign_atss
from d2_ext.modeling.box_codec import PointGrid, centerness, decode_ltrb, encode_ltrb
from d2_ext.modeling.heads.fcos_head import FCOSHead, FCOSPredictions
from d2_ext.modeling.heads.sparse_point_head import SparsePointHead, build_sparse_head, refuse_options
from d2_ext.modeling.losses.focal import sigmoid_focal_loss
from d2_ext.modeling.losses.iou import BOX_LOSSES, ltrb_iou_loss
from d2_ext.modeling.losses.normalizer import MovingAverage, average_over_workers
from d2_ext.modeling.meta_arch.point_detector import (
    PointDetector,
    PointTargets,
    check_choice,
    common_arguments,
    flatten_levels,
    level_of_image,
)
from d2_ext.modeling.point_candidates import select_points

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

QUALITIES = ("centerness", "iou", "none")
CLS_NORMALIZERS = ("fg", "moving_fg", "all")
ASSIGNERS = ("fcos", "atss")
RANKINGS = ("score", "cls")


@dataclass(frozen=True)
class FCOSAssignment:
    """How boxes are given to locations; the fields are those of ``MODEL.FCOS`` in lower case.

    Attributes:
        assigner: ``"fcos"`` or ``"atss"``.
        ranges: per level, which max(l, t, r, b) it answers for, px.
        ranges_closed: whether the bounds belong to the ranges.
        center_sampling_radius: in strides; 0 = the whole box.
        inclusive_pixels: areas of boxes that hold their last pixel.
        atss_topk: candidates per level.
        atss_anchor_scale: side of the anchors, in strides.
    """

    assigner: str
    ranges: Sequence[tuple[float, float]]
    ranges_closed: bool = True
    center_sampling_radius: float = 1.5
    inclusive_pixels: bool = False
    atss_topk: int = 9
    atss_anchor_scale: float = 8.0

    def __call__(self, grid: PointGrid, boxes: Tensor) -> Tensor:
        """Index of the box of each location (R,), -1 where there is none."""
        if self.assigner == "atss":
            return assign_atss(grid, boxes, topk=self.atss_topk, anchor_scale=self.atss_anchor_scale)
        return assign_by_size(
            grid,
            boxes,
            self.ranges,
            radius=self.center_sampling_radius,
            closed=self.ranges_closed,
            inclusive_pixels=self.inclusive_pixels,
        )


@META_ARCH_REGISTRY.register()
class FCOS(PointDetector):
    """The detector; see the module for its sources and ``MODEL.FCOS`` for its variants.

    In training it returns ``loss_cls``, ``loss_box_reg`` and, with a quality branch, ``loss_quality``.

    Args:
        assignment: gives boxes to locations.
        box_quality: what the quality branch learns: ``"centerness"``, ``"iou"``, or ``"none"`` without one.
        focal_loss_alpha, focal_loss_gamma: of the classification loss.
        box_loss: ``"giou"``, ``"linear_iou"`` or ``"iou"``.
        iou_smoothing: (I + 1) / (U + 1), in the unit of the head's raw output.
        box_loss_weight: factor of ``loss_box_reg``.
        loss_normalizer_cls: divisor of ``loss_cls``: ``"fg"``, ``"moving_fg"`` or ``"all"``.
        min_centerness_sum: lower bound of the divisor of ``loss_box_reg`` where centre-ness weights it.
        inclusive_pixels: detections get the last pixel that their boxes hold.
        thresh_with_quality: threshold on class probability x quality instead of class probability.
        ranking: of candidates: ``"score"`` or ``"cls"``; the latter also keeps at most one per location on average.
        dense: the arguments of :class:`PointDetector`.
    """

    @configurable
    def __init__(
        self,
        *,
        assignment: FCOSAssignment,
        box_quality: str = "centerness",
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_loss: str = "giou",
        iou_smoothing: bool = True,
        box_loss_weight: float = 1.0,
        loss_normalizer_cls: str = "fg",
        min_centerness_sum: float = 1e-6,
        inclusive_pixels: bool = False,
        thresh_with_quality: bool = False,
        ranking: str = "score",
        **dense: Any,
    ) -> None:
        super().__init__(**dense)
        self.assignment = assignment
        self.box_quality = check_choice("MODEL.FCOS.BOX_QUALITY", box_quality, QUALITIES)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss = check_choice("MODEL.FCOS.BOX_LOSS", box_loss, BOX_LOSSES)
        self.iou_smoothing = iou_smoothing
        self.box_loss_weight = box_loss_weight
        self.loss_normalizer_cls = check_choice("MODEL.FCOS.LOSS_NORMALIZER_CLS", loss_normalizer_cls, CLS_NORMALIZERS)
        self.moving_positives = MovingAverage() if loss_normalizer_cls == "moving_fg" else None
        self.min_centerness_sum = min_centerness_sum
        self.inclusive_pixels = inclusive_pixels
        self.thresh_with_quality = thresh_with_quality
        self.ranking = check_choice("MODEL.FCOS.RANKING", ranking, RANKINGS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.FCOS`` and ``TEST``; builds the backbone and the head."""
        node = cfg.MODEL.FCOS
        dense, input_shape = common_arguments(cfg, node, "MODEL.FCOS")
        return {
            **dense,
            "head": build_fcos_head(cfg, input_shape),
            "assignment": FCOSAssignment(
                assigner=check_choice("MODEL.FCOS.ASSIGNER", node.ASSIGNER, ASSIGNERS),
                ranges=size_ranges(node.SIZES_OF_INTEREST, len(input_shape)),
                ranges_closed=node.RANGES_CLOSED,
                center_sampling_radius=node.CENTER_SAMPLING_RADIUS,
                inclusive_pixels=node.INCLUSIVE_PIXELS,
                atss_topk=node.ATSS_TOPK,
                atss_anchor_scale=node.ATSS_ANCHOR_SCALE,
            ),
            "box_quality": node.BOX_QUALITY,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "box_loss": node.BOX_LOSS,
            "iou_smoothing": node.IOU_SMOOTHING,
            "box_loss_weight": node.BOX_LOSS_WEIGHT,
            "loss_normalizer_cls": node.LOSS_NORMALIZER_CLS,
            "min_centerness_sum": node.MIN_CENTERNESS_SUM,
            "inclusive_pixels": node.INCLUSIVE_PIXELS,
            "thresh_with_quality": node.THRESH_WITH_QUALITY,
            "ranking": node.RANKING,
        }

    # Training

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: FCOSPredictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; see the class for their names."""
        grid = self.make_grid(features)
        targets = self.make_targets(grid, gt_instances, lambda _, boxes, classes: self.assignment(grid, boxes))
        if not self.is_sparse:
            return self.losses(grid, predictions, targets)
        predictions, sparse = predictions
        positive = (targets.labels >= 0) & (targets.labels < self.num_classes)
        return self.losses(grid, predictions, targets) | self.sparse_losses(grid, sparse, positive)

    def losses(self, grid: PointGrid, predictions: FCOSPredictions, targets: PointTargets) -> dict[str, Tensor]:
        """Classification, box and quality loss, each divided by what is averaged over all workers.

        Args:
            grid: the R locations.
            predictions: maps of the head.
            targets: of N images.
        """
        labels = targets.labels.flatten()  # (N * R,)
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero()[:, 0]  # (P,)
        location = positive % len(grid.points)
        target = encode_ltrb(grid.points[location], targets.boxes.flatten(0, 1)[positive])
        center = centerness(target)
        num_positive, center_sum, num_points = average_over_workers(
            center.new_tensor(len(positive)), center.sum(), labels.numel()
        )
        num_positive = num_positive.clamp(min=1)
        get_event_storage().put_scalar("num_pos_per_image", len(positive) / len(targets.labels))

        logits = flatten_levels(predictions.logits).flatten(0, 1)
        loss_cls = sigmoid_focal_loss(logits, labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma)
        divisor = {"fg": num_positive, "all": num_points.clamp(min=1)}.get(self.loss_normalizer_cls)
        if self.moving_positives is not None:
            divisor = self.moving_positives(num_positive)
        losses = {"loss_cls": loss_cls / divisor}

        predicted = flatten_levels(predictions.distances).flatten(0, 1)[positive]
        unit = self._raw_unit(grid, location)
        box_loss, iou = ltrb_iou_loss(predicted / unit, target / unit, self.box_loss, smooth=self.iou_smoothing)
        if self.box_quality == "centerness":
            box_loss, divisor = box_loss * center, center_sum.clamp(min=self.min_centerness_sum)
        else:
            divisor = num_positive
        losses["loss_box_reg"] = self.box_loss_weight * box_loss.sum() / divisor

        if self.box_quality != "none":
            quality = flatten_levels(predictions.quality).flatten()[positive].float()
            wanted = center if self.box_quality == "centerness" else iou.detach()
            entropy = F.binary_cross_entropy_with_logits(quality, wanted, reduction="sum")
            losses["loss_quality"] = entropy / num_positive
        return losses

    def _raw_unit(self, grid: PointGrid, location: Tensor) -> Tensor | float:
        """Px per unit of the head's raw distances at some locations, (P, 1): the smoothed IoU depends on it."""
        return grid.point_strides[location, None] if self.head.box_activation == "relu" else 1.0

    # Inference

    def detect_levels(
        self, grid: PointGrid, predictions: FCOSPredictions, index: int
    ) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Give boxes (m, 4) XYXY px, scores (m,) and classes (m,) of one image, level by level."""
        if self.is_sparse:
            predictions = predictions[0]
        points = grid.points.split(grid.counts)
        for level, count in enumerate(grid.counts):
            quality = level_of_image(predictions.quality, level, index) if predictions.quality else None
            by_class = self.ranking == "cls"
            location, classes, product = select_points(
                level_of_image(predictions.logits, level, index),
                quality,
                score_thresh=self.test_score_thresh,
                topk=min(self.test_topk_candidates, count) if by_class else self.test_topk_candidates,
                thresh_with_factor=self.thresh_with_quality,
                rank_with_factor=not by_class,
            )
            distances = level_of_image(predictions.distances, level, index)[location]
            boxes = decode_ltrb(points[level][location], distances)
            yield boxes, product if quality is None else product.sqrt(), classes

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, see :class:`PointDetector`; inclusive boxes get their last pixel in the file's frame."""
        outputs = super().forward(batched_inputs)
        if not self.training and self.inclusive_pixels:
            for output in outputs:
                boxes = output["instances"].pred_boxes
                boxes.tensor[:, 2:] += 1
                boxes.clip(output["instances"].image_size)
        return outputs


def build_fcos_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> FCOSHead | SparsePointHead:
    """Build the head that ``MODEL.FCOS`` describes.

    Raises:
        ConfigError: options that sparse towers cannot follow.
    """
    node = cfg.MODEL.FCOS
    if node.SPARSE:
        wrong = {
            f"BOX_ACTIVATION {node.BOX_ACTIVATION!r}": node.BOX_ACTIVATION != "relu",
            f"NUM_SHARE_CONVS {node.NUM_SHARE_CONVS}": node.NUM_SHARE_CONVS > 0,
            f"NUM_CLS_CONVS {node.NUM_CLS_CONVS} other than NUM_BOX_CONVS": node.NUM_CLS_CONVS != node.NUM_BOX_CONVS,
            f"NORM {node.NORM!r}": node.NORM != "GN",
            "DEFORM_LAST_CONV": node.DEFORM_LAST_CONV,
            f"QUALITY_ON {node.QUALITY_ON!r}": node.QUALITY_ON != "box",
        }
        refuse_options("MODEL.FCOS", wrong)
        return build_sparse_head(
            cfg,
            input_shape,
            node.NUM_CLASSES,
            num_convs=node.NUM_CLS_CONVS,
            has_quality=node.BOX_QUALITY != "none",
            use_scale=node.USE_SCALE,
            prior_prob=node.PRIOR_PROB,
        )
    return FCOSHead(
        input_shape=input_shape,
        num_classes=node.NUM_CLASSES,
        num_cls_convs=node.NUM_CLS_CONVS,
        num_box_convs=node.NUM_BOX_CONVS,
        num_share_convs=node.NUM_SHARE_CONVS,
        norm=node.NORM,
        use_scale=node.USE_SCALE,
        deform_last_conv=node.DEFORM_LAST_CONV,
        box_activation=node.BOX_ACTIVATION,
        has_quality=node.BOX_QUALITY != "none",
        quality_on=node.QUALITY_ON,
        prior_prob=node.PRIOR_PROB,
    )
