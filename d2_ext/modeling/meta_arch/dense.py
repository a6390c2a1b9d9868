"""What all dense detectors here share: a training step, and inference from images to detections.

A detector is a backbone, a head that gives one :class:`~d2_ext.modeling.heads.base.HeadOutput`, and four answers: the
losses of a batch, the reference (point or anchor) of each position, the box that a reference and the head's numbers
make, and the rule by which detections are chosen. Export asks the same questions (``export/levels.py``).

Letters: N images, L levels, A anchors a position, R positions (or anchors) of all levels of one image, K classes, M
boxes of one image, V numbers of a box in the head's output.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.sparse.linear import to_channels_last
from d2_ext.modeling.box_codec import PointGrid, make_point_grid
from d2_ext.modeling.heads.base import Head, HeadOutput
from d2_ext.modeling.ignore import IGNORED, boxes_in_regions, split_ignore_regions
from d2_ext.modeling.meta_arch.sparsity import LevelMasks, Sparsity, activation_masks, read_sparsity, seen_objects
from d2_ext.modeling.padding import padded_size, run_in_groups
from d2_ext.modeling.selection import SelectionRule, select_candidates

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

NO_BOX, LEFT_OUT = -1, -2  # what an assigner gives a position of the background, and one that takes no part


@dataclass(frozen=True)
class Targets:
    """What the positions of a batch have to learn.

    Attributes:
        labels: (N, R) 0..K-1 foreground, K background, -1 ignored.
        boxes: (N, R, 4) XYXY, px of the padded input; 0 where there is no foreground.
        objects: (N, R) number of the box among the objects of the image, -1 where there is no foreground.
        positive: bool (N, R), where there is foreground.
        ignored: bool (N, R), what takes no part.
    """

    labels: Tensor
    boxes: Tensor
    objects: Tensor
    positive: Tensor
    ignored: Tensor


class BaseDenseDetector(DenseDetector):
    """A detector with one head over the levels of a pyramid.

    Args:
        backbone: gives the feature maps.
        head: gives the predictions of all levels.
        head_in_features: names of the levels, finest first.
        num_classes: K.
        pixel_mean: per channel, in the order of ``INPUT.FORMAT``.
        pixel_std: likewise.
        test_score_thresh: smaller or equal scores are dropped.
        test_topk_candidates: the most candidates per level and image.
        test_nms_thresh: IoU of class-wise NMS; None means no NMS.
        max_detections_per_image: the most detections of an image.
        class_weights: of the objects of each class in the classification losses, K positive numbers; none for 1.
        sparsity: losses of a head with sparse towers.

    Raises:
        ConfigError: another number of weights, or one that is not positive.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: Head,
        head_in_features: Sequence[str],
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float | None = 0.6,
        max_detections_per_image: int = 100,
        class_weights: Sequence[float] = (),
        sparsity: Sparsity | None = None,
    ) -> None:
        super().__init__(backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std)
        shapes = backbone.output_shape()
        self.strides = [shapes[name].stride for name in head_in_features]
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        keep_class_weights(self, class_weights, num_classes)
        self.sparsity = sparsity or Sparsity()
        if head.memory_format == torch.channels_last:
            to_channels_last(self)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Train or detect, in Detectron2's standard formats.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W), in training ``instances``, in inference optionally
                ``height`` and ``width`` of the wanted frame.

        Returns:
            In training the losses; in inference ``{"instances": ...}`` per image, boxes XYXY px of that frame. Where
            inputs of inference have ``instances``, a detector with sparse towers adds ``"seen_objects"``, a
            :class:`~d2_ext.modeling.meta_arch.sparsity.SeenObjects`.
        """
        if not self.training:
            if self.head.pads_alone:
                return run_in_groups(self.backbone, batched_inputs, self.detect_images)
            return self.detect_images(batched_inputs)
        # A training step.
        # 1. Images, normalized and padded to one size, and the features of their levels.
        features = self.features(self.preprocess_image(batched_inputs).tensor)
        # 2. Predictions at all positions; sparse towers draw their masks.
        output = self.head(features)
        # 3. Each position gets an object or none; the losses of the positions, and of the masks.
        return self.training_losses(features, output, [item["instances"].to(self.device) for item in batched_inputs])

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize and pad the images, in the head's order of memory."""
        images = super().preprocess_image(batched_inputs)
        return ImageList(images.tensor.contiguous(memory_format=self.head.memory_format), images.image_sizes)

    def features(self, images: Tensor) -> list[Tensor]:
        """Maps of the head's levels, (N, C, Hl, Wl) each, of normalized and padded images (N, 3, H, W)."""
        maps = self.backbone(images)
        return [maps[name] for name in self.head_in_features]

    # What a detector answers

    @abstractmethod
    def training_losses(
        self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of a batch by name; see the class for the names."""

    @abstractmethod
    def find_targets(self, features: list[Tensor], output: HeadOutput, gt_instances: list[Instances]) -> Targets:
        """Give each of the R positions of N images an object or none, as in training.

        Args:
            features: L maps (N, C, Hl, Wl).
            output: of the head; only some rules look at it.
            gt_instances: of N images, with ``gt_boxes`` and ``gt_classes``; rows of class -1 are ignore regions.
        """

    @abstractmethod
    def selection_rule(self) -> SelectionRule:
        """How detections are chosen, by the present values of the attributes ``test_...``."""

    @abstractmethod
    def level_references(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Points (H*W, 2) or anchors (H*W*A, 4) of each level, px of the padded input."""

    @abstractmethod
    def decode_boxes(self, level: int, references: Tensor, values: Tensor) -> Tensor:
        """Boxes (m, 4) XYXY px of a level from its references (m, 2 or 4) and the head's float32 numbers (m, V)."""

    @abstractmethod
    def cell_references(self, level: int) -> tuple[float, Tensor | None]:
        """The references of a level for graphs of any image size.

        Returns:
            Where in its cell the point of a position is, px; and the A anchors around it (A, 4), px, or None if the
            point is the reference.
        """

    def limits(self) -> dict[str, Any]:
        """The part of the selection rule that all detectors have."""
        return {
            "score_thresh": self.test_score_thresh,
            "topk": self.test_topk_candidates,
            "nms_thresh": self.test_nms_thresh,
            "max_detections": self.max_detections_per_image,
        }

    # Training

    @torch.no_grad()
    def make_targets(
        self, areas: Tensor, gt_instances: Sequence[Instances], assign: Callable[[int, Instances], Tensor]
    ) -> Targets:
        """Turn the assignment of every image into labels and boxes.

        Args:
            areas: (R, 4) XYXY px, the part of the image that each position covers: background is ignored if
                enough of it lies in an ignore region.
            gt_instances: of N images, with ``gt_boxes`` and ``gt_classes``; rows of class -1 are ignore regions.
            assign: gets the number of the image and its M objects, M may be 0; returns for each position (R,) the
                index of its box, ``NO_BOX`` for background, or ``LEFT_OUT``.
        """
        labels, boxes, matches = [], [], []
        for number, instances in enumerate(gt_instances):
            objects, regions = split_ignore_regions(instances)
            matched = assign(number, objects)
            # The two appended rows are what -2 (left out) and -1 (no box) point at.
            classes = torch.cat([objects.gt_classes, objects.gt_classes.new_tensor([IGNORED, self.num_classes])])
            image_labels = classes[matched]
            if len(regions):
                ignored = boxes_in_regions(areas, regions) & (image_labels == self.num_classes)
                image_labels = image_labels.masked_fill(ignored, IGNORED)
            labels.append(image_labels)
            matches.append(matched.clamp(min=NO_BOX))
            gt_boxes = objects.gt_boxes.tensor
            boxes.append(torch.cat([gt_boxes, gt_boxes.new_zeros(2, 4)])[matched])
        stacked = torch.stack(labels)
        positive = (stacked >= 0) & (stacked < self.num_classes)
        return Targets(stacked, torch.stack(boxes), torch.stack(matches), positive, stacked == IGNORED)

    def sparsity_losses(self, output: HeadOutput, positive: Tensor, ignored: Tensor) -> dict[str, Tensor]:
        """Losses of the sparse towers, none for a dense head.

        Args:
            output: of the head.
            positive: bool (N, R), the positions with an object.
            ignored: bool (N, R), the positions that take no part.
        """
        if output.sparsity is None:
            return {}
        layout = output.logits.layout
        return self.sparsity.losses(output.sparsity, layout, positive, ignored, self.head_in_features)

    # Inference

    @property
    def activation_masks(self) -> Callable[[list[dict[str, Any]]], list[LevelMasks]]:
        """The function :func:`~d2_ext.modeling.meta_arch.sparsity.activation_masks` of batched inputs.

        Only models with sparse towers have it.
        """
        if not hasattr(self.head, "hard_masks"):
            raise AttributeError("Only a head with sparse towers has activation masks.")
        return partial(activation_masks, self)

    def detect_images(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect on images that are padded to one size; see :meth:`forward`."""
        images = self.preprocess_image(batched_inputs)
        features = self.features(images.tensor)
        output = self.head.predict(features, self.test_score_thresh)
        inclusive_pixels = self.selection_rule().inclusive_pixels
        results: list[dict[str, Any]] = []
        for item, found in zip(batched_inputs, self.detect(features, output, images.image_sizes)):
            height, width = (item.get(key, side) for key, side in zip(("height", "width"), found.image_size))
            instances = detector_postprocess(found, height, width)
            if inclusive_pixels:  # the last pixel is one of the wanted frame
                instances.pred_boxes.tensor[:, 2:] += 1
                instances.pred_boxes.clip(instances.image_size)
            results.append({"instances": instances})
        if output.sparsity is not None and all("instances" in item for item in batched_inputs):
            seen = seen_objects(self, features, [item["instances"] for item in batched_inputs])
            results = [{**result, "seen_objects": objects} for result, objects in zip(results, seen)]
        return results

    def detect(
        self, features: Sequence[Tensor], output: HeadOutput, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Turn the predictions of N images into detections, best first, in px of each resized, unpadded image.

        Args:
            features: L maps (N, C, Hl, Wl).
            output: of the head.
            image_sizes: (height, width) of each resized image, px.
        """
        rule, references, logits = self.selection_rule(), self.level_references(features), output.logits
        # 1. Inactive positions are left out, unless the score threshold is so low that it lets them through.
        score = 1 / (1 + math.exp(-logits.base))
        if logits.index is not None and score > rule.score_thresh:
            log_first_n(
                logging.WARNING,
                f"The score threshold {rule.score_thresh:g} is below the score of inactive positions, {score:.2g} "
                f"(class logit {logits.base:g}): all positions of the maps go through the post-processing, and all "
                "boxes are computed. For the speed of sparse inference set SCORE_THRESH_TEST to "
                f"{score:.2g} or more.",
                name=__name__,
                key=("caller", "message"),
            )
            logits = replace(logits, values=logits.dense(), index=None)
        # 2. Positions, logits, box numbers and quality of each level and image.
        segments = logits.per_segment()
        counts = [len(positions) for positions, _ in segments]
        boxes = output.boxes.at(logits.index).split(counts)
        quality = None if output.quality is None else output.quality.at(logits.index).split(counts)
        sizes = logits.layout.segment_sizes
        results = []
        for image, image_size in enumerate(image_sizes):
            # 3. The candidates of each level. Anchors of a position are neighbors.
            found = []
            for level, segment in enumerate(range(image, len(segments), len(image_sizes))):
                positions, x = segments[segment]
                anchors = x.shape[1] // self.num_classes
                number, classes, scores = select_candidates(
                    x.reshape(-1, self.num_classes),
                    None if quality is None else quality[segment],
                    rule,
                    sizes[segment] * anchors,
                )
                row = positions[number // anchors] * anchors + number % anchors
                values = boxes[segment].reshape(-1, boxes[segment].shape[1] // anchors)[number].float()
                found.append((self.decode_boxes(level, references[level][row], values), scores, classes))
            # 4. The best of all levels.
            xyxy, scores, classes = (torch.cat(column) for column in zip(*found))
            pred_boxes = Boxes(xyxy)
            if rule.clip_first:
                pred_boxes.clip(image_size)
            if rule.nms_thresh is None:
                keep = scores.argsort(descending=True, stable=True)
            else:
                keep = batched_nms(pred_boxes.tensor, scores, classes, rule.nms_thresh)
            instances = Instances(image_size, pred_boxes=pred_boxes, scores=scores, pred_classes=classes)
            results.append(instances[keep[: rule.max_detections]])
        return results


def keep_class_weights(detector: nn.Module, weights: Sequence[float], num_classes: int) -> None:
    """Give a detector ``class_weights``, a tensor (K,) or None; it is no part of checkpoints.

    Raises:
        ConfigError: not one positive number for each class.
    """
    if len(weights) not in (0, num_classes) or not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(
            f"MODEL.CLASS_WEIGHTS is {list(weights)}; expected one positive number for each of the {num_classes} "
            "classes, or none at all."
        )
    values = torch.tensor(weights, dtype=torch.float32) if weights else None
    detector.register_buffer("class_weights", values, persistent=False)


class PointDetector(BaseDenseDetector):
    """A detector whose positions are points, the centers of their cells."""

    def make_grid(self, features: Sequence[Tensor]) -> PointGrid:
        """Points of the maps (N, C, Hl, Wl)."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return make_point_grid(sizes, self.strides, features[0].device)

    def level_references(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Points (H*W, 2) of each level."""
        grid = self.make_grid(features)
        return list(grid.points.split(grid.counts))

    def cell_references(self, level: int) -> tuple[float, Tensor | None]:
        """Where the points are; see ``BaseDenseDetector``."""
        return self.strides[level] // 2, None


class AnchorDetector(BaseDenseDetector):
    """A detector whose positions have anchors.

    Args:
        anchor_generator: of the L levels.
        dense: the arguments of :class:`BaseDenseDetector`.
    """

    def __init__(self, *, anchor_generator: nn.Module, **dense: Any) -> None:
        super().__init__(**dense)
        self.anchor_generator = anchor_generator

    def level_references(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors (H*W*A, 4) of each level."""
        return [boxes.tensor for boxes in self.anchor_generator(features)]

    def cell_references(self, level: int) -> tuple[float, Tensor | None]:
        """The anchors of a cell; see ``BaseDenseDetector``."""
        return self.anchor_generator.offset * self.strides[level], list(self.anchor_generator.cell_anchors)[level]

    def inside_image(self, anchors: Sequence[Boxes], image_size: tuple[int, int]) -> list[Tensor]:
        """Which anchors belong to cells that start within the image's own padded size: L tensors, bool (H*W*A,)."""
        height, width = padded_size(self.backbone, *image_size)
        offset = getattr(self.anchor_generator, "offset", 0.0)
        inside = []
        for boxes, stride in zip(anchors, self.strides):
            # the half pixel is for rounding: cells start at multiples of the stride, a whole number of px
            limit = boxes.tensor.new_tensor([width, height]) + offset * stride - 0.5
            inside.append((boxes.get_centers() < limit).all(dim=1))
        return inside


def common_arguments(cfg: CfgNode, node: CfgNode, key: str) -> tuple[dict[str, Any], list[ShapeSpec]]:
    """Build the backbone and collect the arguments of :class:`BaseDenseDetector` except the head.

    Args:
        cfg: the whole config.
        node: the detector's own part of it.
        key: where that is, for messages.

    Returns:
        The arguments, and the shapes of the levels, finest first.

    Raises:
        ConfigError: a level that the backbone does not have, or levels out of order.
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
        "class_weights": cfg.MODEL.CLASS_WEIGHTS,
        "sparsity": read_sparsity(cfg),
    }
    return arguments, input_shape
