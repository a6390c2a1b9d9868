"""FCOS: one location, one box; the original's two forms and AdelaiDet's variants by config.

Papers: FCOS: Fully Convolutional One-Stage Object Detection, arXiv:1904.01355; FCOS: A Simple and Strong Anchor-free
Object Detector, arXiv:2006.09214.
Checked against: outputs of the original code and of AdelaiDet (targets, losses, gradients, detections).
Differs: images without boxes are background, not an error; between equal areas the lower index wins; detections
are not clipped before NMS and overlaps are continuous (the original clips first and counts inclusive pixels).

Letters: N images, L levels, R locations of all levels, K classes, P positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.errors import check_choice
from d2_ext.modeling.assigners.atss import assign_atss
from d2_ext.modeling.assigners.best_anchor import square_anchors
from d2_ext.modeling.assigners.center_sampling import assign_by_size, size_ranges
from d2_ext.modeling.box_codec import PointGrid, centerness, decode_ltrb, encode_ltrb
from d2_ext.modeling.heads.base import Head, HeadOutput
from d2_ext.modeling.heads.fcos_head import FCOSHead
from d2_ext.modeling.heads.sparse import SparsePointHead
from d2_ext.modeling.losses.focal import sigmoid_focal_loss
from d2_ext.modeling.losses.iou import BOX_LOSSES, ltrb_iou_loss
from d2_ext.modeling.losses.normalizer import MovingAverage, average_over_workers
from d2_ext.modeling.meta_arch.dense import PointDetector, Targets, common_arguments
from d2_ext.modeling.meta_arch.sparsity import read_towers, refuse_options
from d2_ext.modeling.selection import SelectionRule

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
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

    Raises:
        ConfigError: an unknown assigner.
    """

    assigner: str
    ranges: Sequence[tuple[float, float]]
    ranges_closed: bool = True
    center_sampling_radius: float = 1.5
    inclusive_pixels: bool = False
    atss_topk: int = 9
    atss_anchor_scale: float = 8.0

    def __post_init__(self) -> None:
        check_choice("MODEL.FCOS.ASSIGNER", self.assigner, ASSIGNERS)

    def __call__(self, grid: PointGrid, boxes: Tensor) -> Tensor:
        """Index of the box of each location (R,), -1 where there is none."""
        if self.assigner == "atss":
            anchors = square_anchors(grid, [self.atss_anchor_scale * stride for stride in grid.strides])
            return assign_atss(anchors, grid.counts, boxes, topk=self.atss_topk, min_distance=0.0)
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
        focal_loss_alpha: weight of positives in the classification loss.
        focal_loss_gamma: its exponent.
        box_loss: ``"giou"``, ``"linear_iou"`` or ``"iou"``.
        iou_smoothing: (I + 1) / (U + 1), in the unit of the head's raw output.
        box_loss_weight: factor of ``loss_box_reg``.
        loss_normalizer_cls: divisor of ``loss_cls``: ``"fg"``, ``"moving_fg"`` or ``"all"``.
        min_centerness_sum: lower bound of the divisor of ``loss_box_reg`` where center-ness weights it.
        inclusive_pixels: detections get the last pixel that their boxes hold.
        thresh_with_quality: threshold on class probability x quality instead of class probability.
        ranking: of candidates: ``"score"`` or ``"cls"``; the latter also keeps at most one per location on average.
        dense: the arguments of :class:`BaseDenseDetector`.
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
                assigner=node.ASSIGNER,
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

    def training_losses(
        self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch; see the class for their names."""
        targets = self.find_targets(features, output, gt_instances)
        losses = self.losses(self.make_grid(features), output, targets)
        return losses | self.sparsity_losses(output, targets.positive, targets.ignored)

    def find_targets(self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]) -> Targets:
        """Give each of the R locations of N images an object or none; the predictions do not matter."""
        return self.assign(self.make_grid(features), gt_instances)

    def assign(self, grid: PointGrid, gt_instances: Sequence[Instances]) -> Targets:
        """Give each of the R locations of N images an object or none."""
        return self.make_targets(
            grid.cells, gt_instances, lambda _, objects: self.assignment(grid, objects.gt_boxes.tensor)
        )

    def losses(self, grid: PointGrid, output: HeadOutput, targets: Targets) -> dict[str, Tensor]:
        """Classification, box and quality loss, each divided by what is averaged over all workers.

        Args:
            grid: the R locations.
            output: of the head in training.
            targets: of N images.
        """
        # 1. The P positive locations, and what they have to learn.
        labels = targets.labels.flatten()  # (N * R,)
        positive = targets.positive.flatten().nonzero()[:, 0]  # (P,)
        location = positive % len(grid.points)
        target = encode_ltrb(grid.points[location], targets.boxes.flatten(0, 1)[positive])
        center = centerness(target)
        num_positive, center_sum, num_points = average_over_workers(
            center.new_tensor(len(positive)), center.sum(), labels.numel()
        )
        num_positive = num_positive.clamp(min=1)
        get_event_storage().put_scalar("num_pos_per_image", len(positive) / len(targets.labels))

        # 2. Classes, at all locations.
        logits = output.logits.per_image().flatten(0, 1)
        alpha, gamma = self.focal_loss_alpha, self.focal_loss_gamma
        loss_cls = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma, class_weights=self.class_weights)
        divisor = num_points.clamp(min=1) if self.loss_normalizer_cls == "all" else num_positive
        if self.moving_positives is not None:
            divisor = self.moving_positives(num_positive)
        losses = {"loss_cls": loss_cls / divisor}

        # 3. Boxes, at the positive ones. The smoothed IoU depends on the unit of the head's raw distances.
        predicted = output.boxes.per_image().flatten(0, 1)[positive]
        unit = grid.point_strides[location, None] if self.head.box_activation == "relu" else 1.0
        box_loss, iou = ltrb_iou_loss(predicted / unit, target / unit, self.box_loss, smooth=self.iou_smoothing)
        if self.box_quality == "centerness":
            box_loss, divisor = box_loss * center, center_sum.clamp(min=self.min_centerness_sum)
        else:
            divisor = num_positive
        losses["loss_box_reg"] = self.box_loss_weight * box_loss.sum() / divisor

        # 4. The quality of these boxes.
        if output.quality is not None:
            quality = output.quality.per_image().flatten()[positive].float()
            wanted = center if self.box_quality == "centerness" else iou.detach()
            entropy = F.binary_cross_entropy_with_logits(quality, wanted, reduction="sum")
            losses["loss_quality"] = entropy / num_positive
        return losses

    # Inference

    def selection_rule(self) -> SelectionRule:
        """How detections are chosen."""
        by_class = self.ranking == "cls"
        return SelectionRule(
            **self.limits(),
            unit="location" if by_class else "pair",
            thresh_with_quality=self.thresh_with_quality,
            rank_with_quality=not by_class,
            root=self.box_quality != "none",
            inclusive_pixels=self.inclusive_pixels,
        )

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Boxes from points and distances, both px."""
        return decode_ltrb(references, values)


def build_fcos_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> Head:
    """Build the head that ``MODEL.FCOS`` describes.

    Raises:
        ConfigError: options that sparse towers cannot follow.
    """
    node = cfg.MODEL.FCOS
    if not node.SPARSE:
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
    refuse_options(
        "MODEL.FCOS",
        {
            f"BOX_ACTIVATION {node.BOX_ACTIVATION!r}": node.BOX_ACTIVATION != "relu",
            f"NUM_SHARE_CONVS {node.NUM_SHARE_CONVS}": node.NUM_SHARE_CONVS > 0,
            f"NUM_CLS_CONVS {node.NUM_CLS_CONVS} other than NUM_BOX_CONVS": node.NUM_CLS_CONVS != node.NUM_BOX_CONVS,
            f"NORM {node.NORM!r}": node.NORM not in ("GN", cfg.MODEL.CEASC.NORM),  # the dense twin's
            "DEFORM_LAST_CONV": node.DEFORM_LAST_CONV,
            f"QUALITY_ON {node.QUALITY_ON!r}": node.QUALITY_ON != "box",
        },
    )
    return SparsePointHead(
        input_shape=input_shape,
        num_classes=node.NUM_CLASSES,
        num_convs=node.NUM_CLS_CONVS,
        has_quality=node.BOX_QUALITY != "none",
        use_scale=node.USE_SCALE,
        prior_prob=node.PRIOR_PROB,
        **read_towers(cfg, "MODEL.FCOS.SPARSE"),
    )
