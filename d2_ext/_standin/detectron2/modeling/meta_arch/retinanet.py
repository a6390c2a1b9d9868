"""RetinaNet (arXiv:1708.02002): every anchor is classified with the focal loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, batched_nms, get_norm
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

# Arguments of RetinaNet that are values of MODEL.RETINANET.
_ARGUMENTS = {
    "head_in_features": "IN_FEATURES",
    "num_classes": "NUM_CLASSES",
    "focal_loss_alpha": "FOCAL_LOSS_ALPHA",
    "focal_loss_gamma": "FOCAL_LOSS_GAMMA",
    "smooth_l1_beta": "SMOOTH_L1_LOSS_BETA",
    "box_reg_loss_type": "BBOX_REG_LOSS_TYPE",
    "test_score_thresh": "SCORE_THRESH_TEST",
    "test_topk_candidates": "TOPK_CANDIDATES_TEST",
    "test_nms_thresh": "NMS_THRESH_TEST",
}


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """A dense detector on anchors. Letters: N images, L levels, A anchors a place, R anchors in total, K classes.

    In training it gives ``loss_cls`` and ``loss_box_reg``, both over a running average of the number of foreground
    anchors, and logs ``num_pos_anchors``, that number per image.

    Args:
        head: gives L class maps (N, A * K, H, W) and L box maps (N, A * 4, H, W).
        smooth_l1_beta, box_reg_loss_type: see ``_dense_box_regression_loss``.
        test_topk_candidates: pairs of anchor and class that each level keeps before NMS, which is per class.
        vis_period, input_format: kept as attributes only.
    """

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
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator, self.anchor_matcher = anchor_generator, anchor_matcher
        self.box2box_transform, self.box_reg_loss_type = box2box_transform, box_reg_loss_type
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh, self.test_topk_candidates = test_score_thresh, test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image
        self.vis_period, self.input_format = vis_period, input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL``, ``TEST`` and ``INPUT``; builds the parts."""
        backbone, keys = build_backbone(cfg), cfg.MODEL.RETINANET
        shapes = backbone.output_shape()
        levels = [shapes[name] for name in keys.IN_FEATURES]
        parts = {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, levels),
            "anchor_generator": build_anchor_generator(cfg, levels),
            "anchor_matcher": Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(keys.BBOX_REG_WEIGHTS),
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return parts | pixels | {argument: keys[key] for argument, key in _ARGUMENTS.items()}

    def _rows(self, predictions: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits and deltas as rows of anchors: L tensors (N, H * W * A, K), L tensors (N, H * W * A, 4)."""
        sizes = self.num_classes, 4
        logits, deltas = ([permute_to_N_HWA_K(x, k) for x in maps] for maps, k in zip(predictions, sizes))
        return logits, deltas

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Label the anchors and give the losses by name."""
        anchors = self.anchor_generator(features)
        targets = self.label_anchors(anchors, gt_instances)
        rows = self._rows(predictions)
        return self.losses(anchors, rows[0], targets[0], rows[1], targets[1])

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Give ``loss_cls`` and ``loss_box_reg``.

        Anchors (H * W * A, 4), logits and deltas (N, H * W * A, K or 4) are of L levels; labels and boxes of N images,
        see :meth:`label_anchors`.
        """
        labels = torch.stack(gt_labels)
        foreground = (labels >= 0) & (labels != self.num_classes)
        count = int(foreground.sum())
        get_event_storage().put_scalar("num_pos_anchors", count / len(labels))
        average = self._ema_update("loss_normalizer", max(count, 1), 100)
        boxes = anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, foreground
        sums = {
            "loss_cls": self._focal_loss(torch.cat(pred_logits, dim=1), labels),
            "loss_box_reg": _dense_box_regression_loss(*boxes, self.box_reg_loss_type, self.smooth_l1_beta),
        }
        return {name: value / average for name, value in sums.items()}

    def _focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the focal loss of logits (N, R, K) over the anchors whose label (N, R) is not -1."""
        counted = labels >= 0
        logits = logits[counted].float()
        # One column more takes the background; a class that does not exist is an error here.
        targets = logits.new_zeros(len(logits), self.num_classes + 1).scatter_(1, labels[counted][:, None], 1)
        focus = self.focal_loss_alpha, self.focal_loss_gamma
        return sigmoid_focal_loss(logits, targets[:, :-1], *focus, reduction="sum")

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of L levels, by the ``gt_boxes`` and ``gt_classes`` of N images.

        Gives for each image labels (R,): a class, K for background, -1 for no part in the losses; and the boxes of
        the matched objects (R, 4), which mean something at foreground anchors.
        """
        everywhere = Boxes.cat(anchors)
        pairs = [self._label_image(everywhere, instances) for instances in gt_instances]
        return [labels for labels, _ in pairs], [boxes for _, boxes in pairs]

    def _label_image(self, anchors: Boxes, truth: Instances) -> tuple[Tensor, Tensor]:
        nearest, outcome = self.anchor_matcher(pairwise_iou(truth.gt_boxes, anchors))
        if len(truth) == 0:
            return torch.full_like(nearest, self.num_classes), torch.zeros_like(anchors.tensor)
        no_object = torch.where(outcome < 0, -1, self.num_classes)
        return torch.where(outcome > 0, truth.gt_classes[nearest], no_object), truth.gt_boxes.tensor[nearest]

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Give the detections of N images, in px of each image before it was padded."""
        anchors = self.anchor_generator(features)
        by_image = [zip(*(level.unbind() for level in rows)) for rows in self._rows(predictions)]
        return [
            self.inference_single_image(anchors, [x.sigmoid() for x in logits], list(deltas), size)
            for logits, deltas, size in zip(*by_image, images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Pick the strongest pairs of anchor and class of each level, then suppress overlaps within a class.

        Anchors, scores (H * W * A, K) and deltas (H * W * A, 4) are of L levels, ``image_size`` is (height, width) px.
        Gives ``pred_boxes`` (not clipped), ``scores`` and ``pred_classes``, best first.
        """
        picks = [self._strongest(scores.flatten()) for scores in box_cls]
        rows = [pick // self.num_classes for pick in picks]
        sources = torch.cat([level.tensor[row] for level, row in zip(anchors, rows)])
        boxes = self.box2box_transform.apply_deltas(torch.cat([x[row] for x, row in zip(box_delta, rows)]), sources)
        scores = torch.cat([level.flatten()[pick] for level, pick in zip(box_cls, picks)])
        classes = torch.cat(picks) % self.num_classes
        keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)[: self.max_detections_per_image]
        return Instances(image_size, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep])

    def _strongest(self, scores: Tensor) -> Tensor:
        """Where the best scores (H * W * A * K,) above the threshold are, best first."""
        above = (scores > self.test_score_thresh).nonzero().squeeze(1)
        return above[scores[above].topk(min(self.test_topk_candidates, above.shape[0])).indices]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions that all levels share, one for classes and one for boxes.

    Args:
        input_shape: of each level; all have the same channels.
        conv_dims: channels of each convolution of a tower.
        norm: of the towers, as in ``detectron2.layers.get_norm``. "BN" and "SyncBN" share their weights between the
            levels, but not their statistics.
        prior_prob: score of every class before training.
    """

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
        super().__init__()
        self.num_levels = len(input_shape)
        widths = [input_shape[0].channels, *conv_dims]
        make_norm = _norm_for_levels(norm, self.num_levels)
        self.cls_subnet, self.bbox_subnet = _tower(widths, make_norm), _tower(widths, make_norm)
        self.cls_score = nn.Conv2d(widths[-1], num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(widths[-1], num_anchors * 4, 3, padding=1)
        for conv in filter(lambda module: isinstance(module, nn.Conv2d), self.modules()):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET`` and the anchors, of which all levels must have as many a place."""
        keys = cfg.MODEL.RETINANET
        counts = build_anchor_generator(cfg, input_shape).num_anchors
        assert len(set(counts)) == 1, f"the levels have {counts} anchors a place; one head needs equal numbers"
        return {
            "input_shape": input_shape,
            "num_classes": keys.NUM_CLASSES,
            "num_anchors": counts[0],
            "conv_dims": [input_shape[0].channels] * keys.NUM_CONVS,
            "norm": keys.NORM,
            "prior_prob": keys.PRIOR_PROB,
        }

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Turn L maps (N, C, H, W) into L class maps (N, A * K, H, W) and L box maps (N, A * 4, H, W)."""
        assert len(features) == self.num_levels, f"{len(features)} maps for a head of {self.num_levels} levels"
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        return logits, [self.bbox_pred(self.bbox_subnet(x)) for x in features]


def _norm_for_levels(norm: str | Callable[[int], nn.Module], num_levels: int) -> Callable[[int], nn.Module | None]:
    classes = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    if isinstance(norm, str) and norm in classes:
        return lambda channels: CycleBatchNormList(num_levels, bn_class=classes[norm], num_features=channels)
    return partial(get_norm, norm)


def _tower(widths: Sequence[int], make_norm: Callable[[int], nn.Module | None]) -> nn.Sequential:
    """3x3 convolutions between ``widths``, each with its norm, if there is one, and a ReLU."""
    steps = ((nn.Conv2d(c, width, 3, padding=1), make_norm(width), nn.ReLU()) for c, width in pairwise(widths))
    return nn.Sequential(*(layer for step in steps for layer in step if layer is not None))
