"""RetinaNet with adaptive sparse convolution (CEASC).

Paper: Adaptive Sparse Convolutional Networks with Global Context Enhancement for Faster Object Detection on Drone
Images, CVPR 2023, arXiv:2303.14488.
Checked against: the authors' released code at commit 2abfd1a (RetinaNet, ResNet-18, 512 channels).
Differs: images of one inference batch never influence each other. The released code is right for one image only.

Letters: N images, L levels, A anchors a position, R anchors of all levels, K classes, P positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2_ext.errors import ConfigError, check_choice
from d2_ext.modeling.assigners.max_iou import BETWEEN, POSITIVE, MaxIoUAssigner
from d2_ext.modeling.heads.base import HeadOutput
from d2_ext.modeling.heads.sparse import CeascHead
from d2_ext.modeling.losses.focal import sigmoid_focal_loss
from d2_ext.modeling.meta_arch.dense import LEFT_OUT, NO_BOX, AnchorDetector, Targets, common_arguments
from d2_ext.modeling.meta_arch.sparsity import read_towers
from d2_ext.modeling.selection import PRE_NMS_UNITS, SelectionRule

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, ciou_loss, diou_loss
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

LOSS_NORMALIZERS = ("local", "moving_average")
IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
BOX_LOSSES = ("smooth_l1", *IOU_LOSSES)


@META_ARCH_REGISTRY.register()
class RetinaNetCEASC(AnchorDetector):
    """RetinaNet whose head computes, at inference, only the positions that its masks select.

    In training it returns ``loss_cls``, ``loss_box_reg`` and the losses of its towers (``Sparsity.losses``), and logs
    the active shares with their targets under ``mask_ratio/``. In inference the detections do not depend on the batch.

    Args:
        anchor_matcher: gives boxes to anchors.
        box2box_transform: of anchors and deltas to boxes.
        focal_loss_alpha: weight of positives in the classification loss.
        focal_loss_gamma: its exponent.
        box_reg_loss_type: ``"smooth_l1"`` of the deltas; or ``"giou"``, ``"diou"`` or ``"ciou"`` of the boxes.
        smooth_l1_beta: where the smooth L1 loss turns from a square into a line.
        loss_normalizer: ``"local"``, the sum over the images of this worker of max(positives, 1); or
            ``"moving_average"``, Detectron2's running average of the positives.
        pre_nms_unit: what TOPK_CANDIDATES_TEST counts per level: ``"anchor"``, anchors by their best class, before the
            score threshold; or ``"pair"``, (anchor, class) pairs above it (Detectron2).
        test_nms_thresh: IoU of class-wise NMS.
        anchors: the other arguments of :class:`AnchorDetector`; ``head`` is a ``CeascHead``.

    Raises:
        ConfigError: for values that cannot work.
    """

    @configurable
    def __init__(
        self,
        *,
        anchor_matcher: MaxIoUAssigner,
        box2box_transform: Box2BoxTransform,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        loss_normalizer: str = "local",
        pre_nms_unit: str = "anchor",
        test_nms_thresh: float | None = 0.5,
        **anchors: Any,
    ) -> None:
        super().__init__(test_nms_thresh=test_nms_thresh, **anchors)
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_reg_loss_type = check_choice("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_reg_loss_type, BOX_LOSSES)
        self.smooth_l1_beta = smooth_l1_beta
        self.loss_normalizer_kind = check_choice("MODEL.CEASC.LOSS_NORMALIZER", loss_normalizer, LOSS_NORMALIZERS)
        self.pre_nms_unit = check_choice("MODEL.CEASC.PRE_NMS_UNIT", pre_nms_unit, PRE_NMS_UNITS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET``, ``MODEL.CEASC`` and ``TEST``; builds the backbone and the head."""
        retinanet, ceasc = cfg.MODEL.RETINANET, cfg.MODEL.CEASC
        thresholds, labels = retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS
        if len(thresholds) != 2 or list(labels) != [0, -1, 1]:
            raise ConfigError(
                f"MODEL.RETINANET.IOU_THRESHOLDS {thresholds} with IOU_LABELS {labels}: RetinaNetCEASC needs two "
                "thresholds, [negative below, positive from], and labels [0, -1, 1]."
            )
        arguments, input_shape = common_arguments(cfg, retinanet, "MODEL.RETINANET")
        anchor_generator = build_anchor_generator(cfg, input_shape)
        return {
            **arguments,
            "head": build_ceasc_head(cfg, input_shape, anchor_generator.num_anchors),
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": MaxIoUAssigner(thresholds[0], thresholds[1], ceasc.LOW_QUALITY_MATCHES),
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "loss_normalizer": ceasc.LOSS_NORMALIZER,
            "pre_nms_unit": ceasc.PRE_NMS_UNIT,
        }

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
        """Give each of the R anchors of N images an object or none.

        An anchor is ignored if its IoU is between the thresholds; if it is background inside an ignore region; or if
        its cell is beyond the image's own padded size.

        Args:
            anchors: of L levels, XYXY in px of the padded batch.
            gt_instances: N images' ``gt_boxes`` and ``gt_classes``, ignore regions (class -1) included.
        """
        all_anchors = Boxes.cat(list(anchors)).tensor

        def assign_image(_: int, objects: Instances) -> Tensor:
            rows = torch.cat(self.inside_image(anchors, objects.image_size)).nonzero()[:, 0]
            matched, outcome = self.anchor_matcher(objects.gt_boxes.tensor, all_anchors[rows])
            own = torch.where(outcome == POSITIVE, matched, NO_BOX).masked_fill(outcome == BETWEEN, LEFT_OUT)
            return own.new_full((len(all_anchors),), LEFT_OUT).index_copy(0, rows, own)

        return self.make_targets(all_anchors, gt_instances, assign_image)

    def losses(self, anchors: Sequence[Boxes], output: HeadOutput, targets: Targets) -> dict[str, Tensor]:
        """Focal loss of all anchors that count, and box loss of the positive ones, divided by their number.

        Args:
            anchors: of L levels, R in total.
            output: of the head in training.
            targets: of N images.
        """
        normalizer = self._normalizer(targets.positive)

        # 1. Classes: the rows of all images below each other, (N * R, K).
        logits = output.logits.per_image().reshape(-1, self.num_classes)
        loss_cls = sigmoid_focal_loss(
            logits,
            targets.labels.flatten(),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            class_weights=self.class_weights,
        )

        # 2. Boxes: the deltas of the P positives, (P, 4).
        image, row = targets.positive.nonzero().unbind(dim=1)
        anchor, wanted = Boxes.cat(list(anchors)).tensor[row], targets.boxes[image, row]
        deltas = output.boxes.per_image().unflatten(2, (-1, 4)).flatten(1, 2)[image, row].float()
        if self.box_reg_loss_type == "smooth_l1":
            wanted_deltas = self.box2box_transform.get_deltas(anchor, wanted)
            loss_box = smooth_l1_loss(deltas, wanted_deltas, beta=self.smooth_l1_beta, reduction="sum")
        else:
            found = self.box2box_transform.apply_deltas(deltas, anchor)
            loss_box = IOU_LOSSES[self.box_reg_loss_type](found, wanted, reduction="sum")
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box / normalizer}

    def _normalizer(self, positive: Tensor) -> float:
        """Divisor of the detection losses, from the positive anchors (N, R) of this worker's batch."""
        per_image = positive.sum(dim=1).tolist()
        get_event_storage().put_scalar("num_pos_anchors", sum(per_image) / len(per_image))
        if self.loss_normalizer_kind == "moving_average":
            return self._ema_update("loss_normalizer", max(sum(per_image), 1), 100)
        return sum(max(count, 1) for count in per_image)

    # Inference

    def selection_rule(self) -> SelectionRule:
        """How detections are chosen; boxes are clipped before NMS, as in the released code."""
        return SelectionRule(**self.limits(), unit=self.pre_nms_unit, clip_first=True)

    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Apply deltas (m, 4) to anchors (m, 4)."""
        # Box2BoxTransform clamps large sizes only, the released code small ones too.
        smallest = values.new_tensor(self.box2box_transform.weights)[2:] * -self.box2box_transform.scale_clamp
        deltas = torch.cat([values[:, :2], torch.maximum(values[:, 2:], smallest)], dim=1)
        return self.box2box_transform.apply_deltas(deltas, references)


def build_ceasc_head(cfg: CfgNode, input_shape: Sequence[ShapeSpec], num_anchors: Sequence[int]) -> CeascHead:
    """Build the head that ``MODEL.RETINANET`` and ``MODEL.CEASC`` describe.

    Args:
        cfg: the whole config.
        input_shape: of the L levels.
        num_anchors: a position, by level.

    Raises:
        ConfigError: for values that cannot work.
    """
    retinanet = cfg.MODEL.RETINANET
    if len(set(num_anchors)) != 1:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR gives {sorted(set(num_anchors))} anchors a position on different levels; the "
            "shared head needs the same number on all."
        )
    if retinanet.NORM:
        raise ConfigError(
            f"MODEL.RETINANET.NORM is {retinanet.NORM!r}, but CEASC's towers have the norm that MODEL.CEASC.NORM "
            'names. Leave it "".'
        )
    return CeascHead(
        input_shape=input_shape,
        num_classes=retinanet.NUM_CLASSES,
        num_anchors=num_anchors[0],
        num_convs=retinanet.NUM_CONVS,
        prior_prob=retinanet.PRIOR_PROB,
        reg_base=cfg.MODEL.CEASC.REG_BASE,
        **read_towers(cfg),
    )
