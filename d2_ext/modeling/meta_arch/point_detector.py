"""What FCOS and DeFCN share: locations instead of anchors, targets per location, and the end of inference.

Letters: N images, L levels, R locations of all levels, K classes, M boxes of one image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.modeling.box_codec import PointGrid, make_point_grid
from d2_ext.modeling.heads.sparse_point_head import SparseOutput, SparsePointHead
from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.meta_arch.image_groups import LevelMasks, activation_masks, run_in_groups
from d2_ext.modeling.meta_arch.mask_ratio import SparsityLosses

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn


@dataclass(frozen=True)
class PointTargets:
    """What the locations of a batch have to learn.

    Attributes:
        labels: (N, R) 0..K-1 foreground, K background, -1 ignored.
        boxes: (N, R, 4) XYXY, px of the padded input; 0 where there is no foreground.
    """

    labels: Tensor
    boxes: Tensor


class PointDetector(DenseDetector):
    """A dense detector with one prediction per location and class.

    Args:
        backbone: gives the feature maps.
        head: gives the predictions of all levels.
        head_in_features: names of the levels, finest first.
        num_classes: K.
        pixel_mean, pixel_std: per channel, in the order of ``INPUT.FORMAT``.
        test_score_thresh: smaller scores are dropped.
        test_topk_candidates: the most candidates per level and image.
        test_nms_thresh: IoU of class-wise NMS; None means no NMS.
        max_detections_per_image: the most detections of an image.
        sparsity_losses: of a head with sparse towers; a dense head has none.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float | None,
        max_detections_per_image: int,
        sparsity_losses: SparsityLosses | None = None,
    ) -> None:
        super().__init__(backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std)
        shapes = backbone.output_shape()
        self.strides = [shapes[name].stride for name in head_in_features]
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.sparsity_losses = sparsity_losses or SparsityLosses()

    @property
    def is_sparse(self) -> bool:
        """Whether the head computes masked positions only."""
        return isinstance(self.head, SparsePointHead)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, in Detectron2's standard formats.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W), in training ``instances``, in inference optionally
                ``height`` and ``width`` of the wanted frame.

        Returns:
            In training the losses; in inference ``{"instances": ...}`` per image, boxes XYXY px of that frame.
        """
        if self.training or not self.is_sparse:
            return super().forward(batched_inputs)
        # The context statistics of sparse towers see the padding: images of other sizes must not decide on it.
        return run_in_groups(self.backbone, batched_inputs, super().forward)

    # Training

    def make_grid(self, features: Sequence[Tensor]) -> PointGrid:
        """Locations of the maps (N, C, Hl, Wl)."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return make_point_grid(sizes, self.strides, features[0].device)

    @torch.no_grad()
    def make_targets(
        self,
        grid: PointGrid,
        gt_instances: Sequence[Instances],
        assign: Callable[[int, Tensor, Tensor], Tensor],
    ) -> PointTargets:
        """Turn the assignment of every image into labels and boxes.

        Args:
            grid: the R locations.
            gt_instances: of N images, with ``gt_boxes`` and ``gt_classes``; rows of class -1 are ignore regions.
            assign: gets the number of the image, its boxes (M, 4) and classes (M,), and returns for each location
                the index of its box or -1, (R,). M may be 0.
        """
        labels, boxes = [], []
        for index, instances in enumerate(gt_instances):
            objects, regions = split_ignore_regions(instances)
            gt_boxes, gt_classes = objects.gt_boxes.tensor, objects.gt_classes
            matched = assign(index, gt_boxes, gt_classes)
            # The appended row is what -1 points at.
            image_labels = torch.cat([gt_classes, gt_classes.new_tensor([self.num_classes])])[matched]
            if len(regions):
                ignored = boxes_in_regions(grid.cells, regions) & (image_labels == self.num_classes)
                image_labels = image_labels.masked_fill(ignored, IGNORED)
            labels.append(image_labels)
            boxes.append(torch.cat([gt_boxes, gt_boxes.new_zeros(1, 4)])[matched])
        return PointTargets(torch.stack(labels), torch.stack(boxes))

    def sparse_losses(self, grid: PointGrid, output: SparseOutput, positive: Tensor) -> dict[str, Tensor]:
        """Losses of the sparse towers; logs the active shares under ``mask_ratio/``.

        Args:
            grid: the R locations.
            output: of the head.
            positive: (N, R) bool, the assigned locations, whose share is the target of the active share.

        Returns:
            ``loss_norm`` and ``loss_ratio``.
        """
        per_level = [p[..., None] for p in positive.split(grid.counts, dim=1)]
        return self.sparsity_losses(output.masks, output.norm_loss, per_level, self.head_in_features)

    # Inference

    @property
    def activation_masks(self) -> Callable[[list[dict[str, Any]]], list[LevelMasks]]:
        """The function :func:`~d2_ext.modeling.meta_arch.image_groups.activation_masks` of batched inputs.

        Only models with sparse towers have it.
        """
        if not self.is_sparse:
            raise AttributeError("Only a head with sparse towers has activation masks.")
        return partial(activation_masks, self)

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Turn the predictions of N images into detections, in px of each resized, unpadded image."""
        grid = self.make_grid(features)
        results = []
        for index, image_size in enumerate(images.image_sizes):
            levels = self.detect_levels(grid, predictions, index)
            boxes, scores, classes = (torch.cat(column) for column in zip(*levels, strict=True))
            results.append(self._keep_best(boxes, scores, classes, image_size))
        return results

    @abstractmethod
    def detect_levels(self, grid: PointGrid, predictions: Any, index: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Give boxes (m, 4) XYXY px, scores (m,) and classes (m,) of one image, level by level."""

    def _keep_best(self, boxes: Tensor, scores: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Instances:
        """Detections of one image, best first, after NMS if there is one."""
        if self.test_nms_thresh is None:
            keep = scores.argsort(descending=True, stable=True)
        else:
            keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        keep = keep[: self.max_detections_per_image]
        return Instances(image_size, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep])


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """L maps (N, C, Hl, Wl) as one tensor (N, R, C)."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def level_of_image(maps: Sequence[Tensor], level: int, index: int) -> Tensor:
    """One level of one image, (Hl * Wl, C)."""
    return maps[level][index].flatten(1).t()


def check_choice(key: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of the choices.

    Raises:
        ConfigError: it is not.
    """
    if value not in choices:
        raise ConfigError(f"{key}: {value!r} is not known. {did_you_mean(str(value), choices)}")
    return value


def common_arguments(cfg: CfgNode, node: CfgNode, key: str) -> tuple[dict[str, Any], list[ShapeSpec]]:
    """Build the backbone and collect the arguments of :class:`PointDetector` except the head.

    Args:
        cfg: the whole config.
        node: the detector's own part of it.
        key: where that is, for messages.

    Returns:
        The arguments, and the shapes of the levels, finest first.

    Raises:
        ConfigError: a level that the backbone has not got, or levels out of order.
    """
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    for name in node.IN_FEATURES:
        if name not in shapes:
            raise ConfigError(f"{key}.IN_FEATURES: the backbone has no output {name!r}. {did_you_mean(name, shapes)}")
    input_shape = [shapes[name] for name in node.IN_FEATURES]
    strides = [shape.stride for shape in input_shape]
    if not strides or strides != sorted(strides):
        raise ConfigError(f"{key}.IN_FEATURES {node.IN_FEATURES} have strides {strides}: name them finest first.")
    arguments = {
        "backbone": backbone,
        "head_in_features": node.IN_FEATURES,
        "num_classes": node.NUM_CLASSES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "test_score_thresh": node.SCORE_THRESH_TEST,
        "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": node.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "sparsity_losses": SparsityLosses(
            cfg.MODEL.CEASC.NORM_LOSS_WEIGHT, cfg.MODEL.CEASC.RATIO_LOSS_WEIGHT, cfg.MODEL.CEASC.RATIO_TARGET
        ),
    }
    return arguments, input_shape
