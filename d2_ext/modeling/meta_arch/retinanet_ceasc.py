"""RetinaNet with adaptive sparse convolution (CEASC).

Paper: Adaptive Sparse Convolutional Networks with Global Context Enhancement for Faster Object Detection on Drone
Images, CVPR 2023, arXiv:2303.14488.
Checked against: the authors' released code at commit 2abfd1a (RetinaNet, ResNet-18, 512 channels).
Differs: images of one inference batch never influence each other. The released code is right for one image only.
"""

from __future__ import annotations

from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.modeling.assigners.max_iou import BETWEEN, POSITIVE, MaxIoUAssigner
from d2_ext.modeling.heads.ceasc_head import CeascHead, CeascPredictions
from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.meta_arch.anchor_rows import per_anchor
from d2_ext.modeling.meta_arch.point_detector import check_choice
from d2_ext.modeling.meta_arch.sparse_masks import SparseMaskDetector
from d2_ext.modeling.postprocessing import PRE_NMS_UNITS

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

LOSS_NORMALIZERS = ("local", "moving_average")
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")


@META_ARCH_REGISTRY.register()
class RetinaNetCEASC(SparseMaskDetector, RetinaNet):
    """RetinaNet whose head computes, at inference, only the positions that its masks select.

    In training it returns ``loss_cls``, ``loss_box_reg``, ``loss_norm`` and ``loss_ratio``, and logs the active shares
    with their targets under ``mask_ratio/``. In inference the detections do not depend on the batch, see
    ``AnchorRowDetector``.

    Args:
        norm_loss_weight: alpha, weight of the norm loss.
        ratio_loss_weight: beta, weight of the mask ratio loss.
        ratio_target: see ``positive_ratios``.
        loss_normalizer: ``"local"``, the sum over the images of this worker of max(positives, 1); or
            ``"moving_average"``, Detectron2's running average of the positives.
        pre_nms_unit: what TOPK_CANDIDATES_TEST counts per level: ``"anchor"``, anchors by their best class, before the
            score threshold; or ``"pair"``, (anchor, class) pairs above it (Detectron2).
        retinanet: the arguments of Detectron2's ``RetinaNet``; ``head`` is a ``CeascHead``, ``anchor_matcher`` a
            ``MaxIoUAssigner``.

    Raises:
        ConfigError: for values that cannot work.
    """

    @configurable
    def __init__(
        self,
        *,
        norm_loss_weight: float = 10.0,
        ratio_loss_weight: float = 1.0,
        ratio_target: str = "anchors",
        loss_normalizer: str = "local",
        pre_nms_unit: str = "anchor",
        **retinanet: Any,
    ) -> None:
        super().__init__(**retinanet)
        check_choice("MODEL.CEASC.LOSS_NORMALIZER", loss_normalizer, LOSS_NORMALIZERS)
        check_choice("MODEL.CEASC.PRE_NMS_UNIT", pre_nms_unit, PRE_NMS_UNITS)
        check_choice("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", self.box_reg_loss_type, BOX_LOSSES)
        self.set_sparsity(
            norm_loss_weight=norm_loss_weight, ratio_loss_weight=ratio_loss_weight, ratio_target=ratio_target
        )
        self.loss_normalizer_kind = loss_normalizer
        self.pre_nms_unit = pre_nms_unit

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET``, ``MODEL.CEASC`` and ``TEST``; builds the backbone and the head."""
        retinanet, ceasc = cfg.MODEL.RETINANET, cfg.MODEL.CEASC
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        for name in retinanet.IN_FEATURES:
            if name not in shapes:
                raise ConfigError(
                    f"MODEL.RETINANET.IN_FEATURES: the backbone has no output {name!r}. {did_you_mean(name, shapes)}"
                )
        input_shape = [shapes[name] for name in retinanet.IN_FEATURES]
        return {
            "norm_loss_weight": ceasc.NORM_LOSS_WEIGHT,
            "ratio_loss_weight": ceasc.RATIO_LOSS_WEIGHT,
            "ratio_target": ceasc.RATIO_TARGET,
            "loss_normalizer": ceasc.LOSS_NORMALIZER,
            "pre_nms_unit": ceasc.PRE_NMS_UNIT,
            "backbone": backbone,
            "head": CeascHead(cfg, input_shape),
            "head_in_features": retinanet.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": _assigner_from_config(cfg),
            "num_classes": retinanet.NUM_CLASSES,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": retinanet.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    # Training

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: CeascPredictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute all losses of a batch; see the class for their names."""
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        logits, deltas = per_anchor(predictions.logits, self.num_classes), per_anchor(predictions.deltas, 4)
        losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        labels = torch.stack(gt_labels)
        losses.update(self.sparsity_losses(predictions, (labels >= 0) & (labels != self.num_classes)))
        return losses

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of N images.

        Args:
            anchors: of L levels, XYXY in px of the padded batch; R in total.
            gt_instances: N images' ``gt_boxes`` and ``gt_classes``, ignore regions (class -1) included.

        Returns:
            N label vectors (R,): 0..K-1 foreground, K background, -1 ignored (IoU between the thresholds, background
            inside an ignore region, or a cell beyond the image's own padded size); and N tensors of matched boxes
            (R, 4), meaningful at foreground anchors.
        """
        all_anchors = Boxes.cat(anchors).tensor
        labels, boxes = [], []
        for instances in gt_instances:
            objects, regions = split_ignore_regions(instances)
            image_labels = torch.full((len(all_anchors),), IGNORED, device=all_anchors.device)
            image_boxes = torch.zeros_like(all_anchors)
            inside = torch.cat(self.inside_image(anchors, instances.image_size)).nonzero().squeeze(1)
            image_labels[inside], image_boxes[inside] = self._label(all_anchors[inside], objects, regions)
            labels.append(image_labels)
            boxes.append(image_boxes)
        return labels, boxes

    def _label(self, anchors: Tensor, objects: Instances, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (R,) and matched boxes (R, 4) of one image's own anchors (R, 4)."""
        matched, outcome = self.anchor_matcher(objects.gt_boxes.tensor, anchors)
        labels = torch.full_like(matched, self.num_classes)
        labels[boxes_in_regions(anchors, regions) | (outcome == BETWEEN)] = IGNORED
        if len(objects) == 0:
            return labels, torch.zeros_like(anchors)
        positive = outcome == POSITIVE
        labels[positive] = objects.gt_classes[matched[positive]]
        return labels, objects.gt_boxes.tensor[matched].to(anchors.dtype)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss and box loss.

        Args:
            anchors: of L levels, R in total.
            pred_logits: L tensors (N, H*W*A, K).
            gt_labels, gt_boxes: see ``label_anchors``.
            pred_anchor_deltas: L tensors (N, H*W*A, 4).

        Returns:
            ``loss_cls`` and ``loss_box_reg``, both divided by the number of positive anchors (see the class).
        """
        labels = torch.stack(gt_labels)  # (N, R)
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        normalizer = self._normalizer(positive)
        target = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1]  # background: all zero
        logits = torch.cat(pred_logits, dim=1)[valid].float()
        loss_cls = sigmoid_focal_loss(
            logits, target.to(logits.dtype), self.focal_loss_alpha, self.focal_loss_gamma, reduction="sum"
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            [x.float() for x in pred_anchor_deltas],
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    def _normalizer(self, positive: Tensor) -> float:
        """Divisor of the detection losses, from the positive anchors (N, R) of this worker's batch."""
        per_image = positive.sum(dim=1).tolist()
        get_event_storage().put_scalar("num_pos_anchors", sum(per_image) / len(per_image))
        if self.loss_normalizer_kind == "moving_average":
            return self._ema_update("loss_normalizer", max(sum(per_image), 1), 100)
        return sum(max(count, 1) for count in per_image)

    # Inference

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: CeascPredictions
    ) -> list[Instances]:
        """Turn the predictions of N images into detections, in px of each resized, unpadded image."""
        anchors = self.anchor_generator(features)
        return self.detect_rows(predictions.logits, predictions.deltas, anchors, images.image_sizes)

    def decode_boxes(self, level: int, anchors: Tensor, values: Tensor) -> Tensor:
        """Apply deltas (m, 4) to anchors (m, 4)."""
        # Box2BoxTransform clamps large sizes only, the released code small ones too.
        smallest = values.new_tensor(self.box2box_transform.weights)[2:] * -self.box2box_transform.scale_clamp
        deltas = torch.cat([values[:, :2], torch.maximum(values[:, 2:], smallest)], dim=1)
        return self.box2box_transform.apply_deltas(deltas, anchors)


def _assigner_from_config(cfg: CfgNode) -> MaxIoUAssigner:
    thresholds, labels = cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS
    if len(thresholds) != 2 or list(labels) != [0, -1, 1]:
        raise ConfigError(
            f"MODEL.RETINANET.IOU_THRESHOLDS {thresholds} with IOU_LABELS {labels}: RetinaNetCEASC needs two "
            "thresholds, [negative below, positive from], and labels [0, -1, 1]."
        )
    return MaxIoUAssigner(thresholds[0], thresholds[1], cfg.MODEL.CEASC.LOW_QUALITY_MATCHES)
