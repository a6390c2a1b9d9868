"""RetinaNet with adaptive sparse convolution (CEASC).

Paper: Adaptive Sparse Convolutional Networks with Global Context Enhancement for Faster Object Detection on Drone
Images, CVPR 2023, arXiv:2303.14488.
Checked against: the authors' released code at commit 2abfd1a (RetinaNet, ResNet-18, 512 channels).
Differs: pictures of one inference batch never influence each other. The released code is right for one picture only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.modeling.assigners.max_iou import BETWEEN, POSITIVE, MaxIoUAssigner
from d2_ext.modeling.heads.ceasc_head import BRANCHES, CeascHead, CeascPredictions
from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.losses.sparsity import RATIO_TARGETS, active_ratios, positive_ratios, ratio_loss
from d2_ext.modeling.postprocessing import PRE_NMS_UNITS, select_candidates

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
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
class RetinaNetCEASC(RetinaNet):
    """RetinaNet whose head computes, at inference, only the positions that its masks select.

    In training it returns ``loss_cls``, ``loss_box_reg``, ``loss_norm`` and ``loss_ratio``, and logs the active shares
    with their targets under ``mask_ratio/``. In inference a picture is padded only to the backbone's divisibility,
    whatever the sizes of the others in the batch (pictures of equal padded size are computed together), because the
    statistics of its context map are taken over the padded picture: the detections do not depend on the batch.

    Args:
        norm_loss_weight: alpha, weight of the norm loss.
        ratio_loss_weight: beta, weight of the mask ratio loss.
        ratio_target: see ``positive_ratios``.
        loss_normalizer: ``"local"``, the sum over the pictures of this worker of max(positives, 1); or
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
        _check_choice("MODEL.CEASC.RATIO_TARGET", ratio_target, RATIO_TARGETS)
        _check_choice("MODEL.CEASC.LOSS_NORMALIZER", loss_normalizer, LOSS_NORMALIZERS)
        _check_choice("MODEL.CEASC.PRE_NMS_UNIT", pre_nms_unit, PRE_NMS_UNITS)
        _check_choice("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", self.box_reg_loss_type, BOX_LOSSES)
        self.norm_loss_weight = norm_loss_weight
        self.ratio_loss_weight = ratio_loss_weight
        self.ratio_target = ratio_target
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

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, in Detectron2's standard formats.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W), in training ``instances``, in inference optionally
                ``height`` and ``width`` of the wanted frame.

        Returns:
            In training the losses; in inference ``{"instances": ...}`` per picture, in order.
        """
        if self.training:
            return super().forward(batched_inputs)
        results: dict[int, dict[str, Instances]] = {}
        for group in self._groups_of_equal_size(batched_inputs):
            results.update(zip(group, super().forward([batched_inputs[i] for i in group])))
        return [results[i] for i in range(len(batched_inputs))]

    @torch.no_grad()
    def activation_masks(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, dict[str, Tensor]]]:
        """Masks of inference, in whatever mode the model is.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W).

        Returns:
            Per picture, by level name ("p3", ...) and branch ("cls", "reg"): bool (ceil(H / stride),
            ceil(W / stride)), True where the head computes.
        """
        results: dict[int, dict[str, dict[str, Tensor]]] = {}
        for group in self._groups_of_equal_size(batched_inputs):
            images = self.preprocess_image([batched_inputs[i] for i in group])
            features = self.backbone(images.tensor)
            masks = self.head.hard_masks([features[f] for f in self.head_in_features])
            for row, (number, size) in enumerate(zip(group, images.image_sizes)):
                results[number] = self._cropped_masks(masks, row, size)
        return [results[i] for i in range(len(batched_inputs))]

    def _cropped_masks(
        self, masks: Mapping[str, list[Tensor]], row: int, size: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        cropped = {}
        for level, (name, stride) in enumerate(zip(self.head_in_features, self._strides())):
            height, width = (math.ceil(int(x) / stride) for x in size)
            cropped[name] = {b: masks[b][level][row, 0, :height, :width] for b in BRANCHES}
        return cropped

    def _strides(self) -> list[int]:
        shapes = self.backbone.output_shape()
        return [shapes[name].stride for name in self.head_in_features]

    def _padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of one picture (px) after it is padded alone, as ``preprocess_image`` does."""
        constraints = self.backbone.padding_constraints
        if constraints.get("square_size", 0) > 0:
            return constraints["square_size"], constraints["square_size"]
        step = max(constraints.get("size_divisibility", self.backbone.size_divisibility), 1)
        return math.ceil(height / step) * step, math.ceil(width / step) * step

    def _groups_of_equal_size(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Numbers of the pictures that have the same padded size, group by group."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number, item in enumerate(batched_inputs):
            groups.setdefault(self._padded_size(*item["image"].shape[-2:]), []).append(number)
        return list(groups.values())

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
        logits = _per_anchor(predictions.logits.layout.per_map(predictions.logits.values), self.num_classes)
        deltas = _per_anchor(predictions.deltas.layout.per_map(predictions.deltas.values), 4)
        losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        losses["loss_norm"] = self.norm_loss_weight * predictions.norm_loss
        losses["loss_ratio"] = self.ratio_loss_weight * self._ratio_loss(predictions, anchors, gt_labels)
        return losses

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of N pictures.

        Args:
            anchors: of L levels, XYXY in px of the padded batch; R in total.
            gt_instances: N pictures' ``gt_boxes`` and ``gt_classes``, ignore regions (class -1) included.

        Returns:
            N label vectors (R,): 0..K-1 foreground, K background, -1 ignored (IoU between the thresholds, background
            inside an ignore region, or a cell beyond the picture's own padded size); and N tensors of matched boxes
            (R, 4), meaningful at foreground anchors.
        """
        all_anchors = Boxes.cat(anchors).tensor
        labels, boxes = [], []
        for instances in gt_instances:
            objects, regions = split_ignore_regions(instances)
            picture_labels = torch.full((len(all_anchors),), IGNORED, device=all_anchors.device)
            picture_boxes = torch.zeros_like(all_anchors)
            inside = self._inside_picture(anchors, instances.image_size).nonzero().squeeze(1)
            picture_labels[inside], picture_boxes[inside] = self._label(all_anchors[inside], objects, regions)
            labels.append(picture_labels)
            boxes.append(picture_boxes)
        return labels, boxes

    def _label(self, anchors: Tensor, objects: Instances, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (R,) and matched boxes (R, 4) of one picture's own anchors (R, 4)."""
        matched, outcome = self.anchor_matcher(objects.gt_boxes.tensor, anchors)
        labels = torch.full_like(matched, self.num_classes)
        labels[boxes_in_regions(anchors, regions) | (outcome == BETWEEN)] = IGNORED
        if len(objects) == 0:
            return labels, torch.zeros_like(anchors)
        positive = outcome == POSITIVE
        labels[positive] = objects.gt_classes[matched[positive]]
        return labels, objects.gt_boxes.tensor[matched].to(anchors.dtype)

    def _inside_picture(self, anchors: list[Boxes], image_size: tuple[int, int]) -> Tensor:
        """Which anchors belong to cells that start within the picture's own padded size: bool (R,)."""
        height, width = self._padded_size(*image_size)
        offset = getattr(self.anchor_generator, "offset", 0.0)
        inside = []
        for boxes, stride in zip(anchors, self._strides()):
            # the half pixel is for rounding: cells start at multiples of the stride, a whole number of px
            limit = boxes.tensor.new_tensor([width, height]) + offset * stride - 0.5
            inside.append((boxes.get_centers() < limit).all(dim=1))
        return torch.cat(inside)

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
        per_picture = positive.sum(dim=1).tolist()
        get_event_storage().put_scalar("num_pos_anchors", sum(per_picture) / len(per_picture))
        if self.loss_normalizer_kind == "moving_average":
            return self._ema_update("loss_normalizer", max(sum(per_picture), 1), 100)
        return sum(max(count, 1) for count in per_picture)

    def _ratio_loss(self, predictions: CeascPredictions, anchors: list[Boxes], gt_labels: list[Tensor]) -> Tensor:
        """Unweighted mask ratio loss; logs the ratios."""
        labels = torch.stack(gt_labels)
        positive = ((labels >= 0) & (labels != self.num_classes)).split([len(a) for a in anchors], dim=1)
        shapes = predictions.logits.layout.shapes
        per_position = [p.view(n, h * w, -1) for p, (n, h, w) in zip(positive, shapes)]
        targets = positive_ratios(per_position, self.ratio_target)
        ratios = torch.stack([active_ratios(predictions.masks[branch]) for branch in BRANCHES])
        self._log_ratios(ratios, targets, predictions)
        return ratio_loss(ratios, targets)

    @torch.no_grad()
    def _log_ratios(self, ratios: Tensor, targets: Tensor, predictions: CeascPredictions) -> None:
        """Log the active share of each level and branch with its target, and of each branch over all levels."""
        sizes = torch.tensor(predictions.logits.layout.map_sizes, dtype=torch.float32)
        table = torch.cat([ratios, targets[None]]).cpu()  # one transfer
        overall = (table * (sizes / sizes.sum())).sum(dim=1).tolist()
        scalars = {}
        for name, total, row in zip((*BRANCHES, "target"), overall, table.tolist()):
            scalars[f"mask_ratio/{name}"] = total
            scalars.update({f"mask_ratio/{level}_{name}": x for level, x in zip(self.head_in_features, row)})
        get_event_storage().put_scalars(smoothing_hint=False, **scalars)

    # Inference

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: CeascPredictions
    ) -> list[Instances]:
        """Turn the predictions of N pictures into detections, in px of each resized, unpadded picture."""
        logits = predictions.logits
        if logits.index is not None and 1 / (1 + math.exp(-logits.base)) > self.test_score_thresh:
            # A threshold this low lets inactive positions through, so they must be looked at, too.
            logits = type(logits)(logits.dense(), None, logits.base, logits.layout)
        all_rows = torch.arange(logits.layout.num_rows, device=logits.values.device)
        deltas = predictions.deltas.at(all_rows if logits.index is None else logits.index)
        deltas_at = type(logits)(deltas, logits.index, predictions.deltas.base, logits.layout)
        segments = [(p, x, d) for (p, x), (_, d) in zip(logits.per_segment(), deltas_at.per_segment())]
        anchors = [a.tensor for a in self.anchor_generator(features)]
        num_images = len(images.image_sizes)
        return [
            self._detect(list(zip(anchors, segments[i::num_images])), size) for i, size in enumerate(images.image_sizes)
        ]

    def _detect(self, levels: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]], image_size: Any) -> Instances:
        """Detections of one picture.

        Args:
            levels: per level the anchors (H*W*A, 4); and positions (m,), logits (m, A*K), deltas (m, A*4) of the
                positions that may hold a detection.
            image_size: (height, width) of the resized picture, px.
        """
        candidates = [self._candidates(anchors, *rows, image_size) for anchors, rows in levels]
        found = Instances.cat(candidates)
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]

    def _candidates(
        self, anchors: Tensor, positions: Tensor, logits: Tensor, deltas: Tensor, image_size: Any
    ) -> Instances:
        """Boxes of one level that go into NMS; see ``_detect`` for the arguments."""
        scores = logits.float().sigmoid().view(-1, self.num_classes)  # (m*A, K)
        number, classes, scores = select_candidates(
            scores, self.test_score_thresh, self.test_topk_candidates, self.pre_nms_unit
        )
        deltas = deltas.float().view(-1, 4)[number]
        # Box2BoxTransform clamps large sizes only, the released code small ones too.
        smallest = deltas.new_tensor(self.box2box_transform.weights)[2:] * -self.box2box_transform.scale_clamp
        deltas = torch.cat([deltas[:, :2], torch.maximum(deltas[:, 2:], smallest)], dim=1)
        per_position = self.anchor_generator.num_anchors[0]
        anchor_number = positions[number // per_position] * per_position + number % per_position
        boxes = Boxes(self.box2box_transform.apply_deltas(deltas, anchors[anchor_number]))
        boxes.clip(image_size)  # before NMS, as in the released code
        return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)


def _per_anchor(per_map: list[Tensor], dims: int) -> list[Tensor]:
    """Split the channels (A*dims) of L tensors (N, H*W, A*dims): (N, H*W*A, dims)."""
    return [x.reshape(x.shape[0], -1, dims) for x in per_map]


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}: {value!r} is not known. {did_you_mean(value, choices)}")


def _assigner_from_config(cfg: CfgNode) -> MaxIoUAssigner:
    thresholds, labels = cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.RETINANET.IOU_LABELS
    if len(thresholds) != 2 or list(labels) != [0, -1, 1]:
        raise ConfigError(
            f"MODEL.RETINANET.IOU_THRESHOLDS {thresholds} with IOU_LABELS {labels}: RetinaNetCEASC needs two "
            "thresholds, [negative below, positive from], and labels [0, -1, 1]."
        )
    return MaxIoUAssigner(thresholds[0], thresholds[1], cfg.MODEL.CEASC.LOW_QUALITY_MATCHES)
