"""RetinaNet (arXiv:1708.02002).

Letters: N pictures; R anchors of all levels; A anchors of a cell; K classes. Labels: 0..K-1 foreground, K background,
-1 ignored. Boxes are XYXY in px of the padded input.

Differs from the paper: losses are divided by a moving average of the number of foreground anchors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, batched_nms, cat, get_norm
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K  # noqa: F401
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

__all__ = ["RetinaNet"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """Focal loss on anchors at every cell."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ) -> None:
        """Put the parts together.

        Args:
            backbone, head, head_in_features, pixel_mean, pixel_std: see ``DenseDetector``; the head gives logits
                (N, A * K, H, W) and deltas (N, A * 4, H, W) of each level.
            anchor_generator: makes the anchors of the maps.
            box2box_transform: what the deltas mean.
            anchor_matcher: labels anchors 1 (foreground), 0 (background) or -1 (ignored) by their IoU.
            num_classes: K.
            focal_loss_alpha, focal_loss_gamma: of the loss of the logits.
            smooth_l1_beta, box_reg_loss_type: of the loss of the deltas; see ``_dense_box_regression_loss``.
            test_score_thresh: least score of a detection, exclusive.
            test_topk_candidates: detections of a level that enter the suppression.
            test_nms_thresh: IoU above which the worse of two detections of a class is dropped.
            max_detections_per_image: kept after the suppression.
            vis_period: stored, as Detectron2 does; nothing is drawn.
            input_format: order of the channels, for ``visualize_training``.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.RETINANET`` and its neighbours; makes backbone and head, in this order."""
        keys = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        head_shapes = [shapes[f] for f in keys.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, head_shapes),
            "head_in_features": keys.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, head_shapes),
            "box2box_transform": Box2BoxTransform(weights=keys.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS, allow_low_quality_matches=True),
            "num_classes": keys.NUM_CLASSES,
            "focal_loss_alpha": keys.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": keys.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": keys.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": keys.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": keys.SCORE_THRESH_TEST,
            "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": keys.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``."""
        anchors = self.anchor_generator(features)
        targets = self.label_anchors(anchors, gt_instances)
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return self.losses(anchors, logits, targets[0], deltas, targets[1])

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss of the logits and regression loss of the foreground.

        Args:
            anchors: of each level.
            pred_logits, pred_anchor_deltas: of each level, (N, H * W * A, K) and (N, H * W * A, 4).
            gt_labels, gt_boxes: of each picture, (R,) and (R, 4), as ``label_anchors`` gives them.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        counted = labels >= 0
        foreground = counted & (labels != self.num_classes)
        num_foreground = foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_foreground / len(gt_labels))
        normalizer = self._ema_update("loss_normalizer", max(num_foreground, 1), 100)
        logits = cat(pred_logits, dim=1)[counted].float()
        targets = F.one_hot(labels[counted], num_classes=self.num_classes + 1)[:, :-1]  # background is all zero
        loss_cls = sigmoid_focal_loss(
            logits, targets.to(logits.dtype), alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma, reduction="sum"
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            foreground,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Class and box that each anchor shall predict.

        Args:
            anchors: of each level.
            gt_instances: of each picture, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            Of each picture, the labels (R,) and the boxes (R, 4), which mean nothing where the label is not foreground.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, gt_boxes = [], []
        for objects in gt_instances:
            matches, kinds = self.anchor_matcher(pairwise_iou(objects.gt_boxes, all_anchors))
            if len(objects) > 0:
                labels = objects.gt_classes[matches]
                labels[kinds == 0] = self.num_classes
                labels[kinds == -1] = -1
                boxes = objects.gt_boxes.tensor[matches]
            else:
                labels = torch.full_like(matches, self.num_classes)
                boxes = torch.zeros_like(all_anchors.tensor)
            gt_labels.append(labels)
            gt_boxes.append(boxes)
        return gt_labels, gt_boxes

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Detections of each picture, in px of the picture before padding, not clipped to it."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(anchors, [x[i].sigmoid_() for x in logits], [x[i] for x in deltas], image_size)
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """The best detections of one picture, after suppression within each class.

        Args:
            anchors: of each level.
            box_cls: scores of each level, (H * W * A, K), in [0, 1].
            box_delta: deltas of each level, (H * W * A, 4).
            image_size: (height, width) in px.
        """
        detections = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(
            detections.pred_boxes.tensor, detections.scores, detections.pred_classes, self.test_nms_thresh
        )
        return detections[keep[: self.max_detections_per_image]]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, for the classes and for the boxes, used at all levels."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module] = "",
        prior_prob: float = 0.01,
    ) -> None:
        """Build the towers.

        Args:
            input_shape: of each level; all have as many channels as the first.
            num_classes: K.
            num_anchors: A.
            conv_dims: channels of each convolution of a tower.
            norm: after each of them, see ``get_norm``; for ``"BN"`` and ``"SyncBN"`` each level has its own statistics.
            prior_prob: score that an untrained head gives, in (0, 1).
        """
        super().__init__()
        self._num_features = len(input_shape)
        norm = self._norm_of_levels(norm)
        # Both towers grow together and each is initialised as a whole, in Detectron2's order: a seed gives its weights.
        cls_layers: list[nn.Module] = []
        box_layers: list[nn.Module] = []
        for in_channels, out_channels in zip([input_shape[0].channels, *conv_dims], conv_dims):
            for layers in (cls_layers, box_layers):
                layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
                if norm:
                    layers.append(get_norm(norm, out_channels))
                layers.append(nn.ReLU())
        self.cls_subnet, self.bbox_subnet = nn.Sequential(*cls_layers), nn.Sequential(*box_layers)
        for name, numbers in (("cls_score", num_classes), ("bbox_pred", 4)):
            self.add_module(name, nn.Conv2d(conv_dims[-1], num_anchors * numbers, kernel_size=3, padding=1))
        for layer in [x for x in self.modules() if isinstance(x, nn.Conv2d)]:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def _norm_of_levels(self, norm: str | Callable[[int], nn.Module]) -> str | Callable[[int], nn.Module]:
        """The norm, with separate statistics of the levels where that is known to matter."""
        classes = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
        if isinstance(norm, str) and norm in classes:
            num = self._num_features
            logger.info("RetinaNetHead: each of the %d levels has its own statistics of %s.", num, norm)
            return lambda channels: CycleBatchNormList(num, bn_class=classes[norm], num_features=channels)
        if "BN" in str(type(get_norm(norm, 32))):
            logger.warning("RetinaNetHead: one batch norm (%s) for all levels may not work well.", norm)
        return norm

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.RETINANET``."""
        keys = cfg.MODEL.RETINANET
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
        assert len(set(num_anchors)) == 1, f"All levels must have the same number of anchors, not {num_anchors}."
        return {
            "input_shape": input_shape,
            "num_classes": keys.NUM_CLASSES,
            "num_anchors": num_anchors[0],
            "conv_dims": [input_shape[0].channels] * keys.NUM_CONVS,
            "norm": keys.NORM,
            "prior_prob": keys.PRIOR_PROB,
        }

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * K, H, W) and deltas (N, A * 4, H, W) of each level, from its map (N, C, H, W)."""
        assert len(features) == self._num_features, f"{len(features)} maps for a head of {self._num_features}."
        levels = [(self.cls_score(self.cls_subnet(x)), self.bbox_pred(self.bbox_subnet(x))) for x in features]
        logits, deltas = map(list, zip(*levels))
        return logits, deltas
