"""What detectors on anchors share here: images that do not influence each other, and detections straight from rows.

A head of such a detector gives class logits and box values as ``RowValues``: of all positions, or of the active ones
only. Letters: N images, L levels, A anchors a position, K classes, R anchors of all levels, m chosen positions.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from d2_ext.layers.sparse.rows import RowValues
from d2_ext.modeling.meta_arch.image_groups import run_in_groups
from d2_ext.modeling.padding import padded_size
from d2_ext.modeling.postprocessing import select_candidates

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor


class AnchorRowDetector(DenseDetector):
    """A dense detector whose norms look at the whole padded image, and whose head gives rows.

    In inference an image is padded only to the backbone's divisibility, whatever the sizes of the others in the batch
    (images of equal padded size are computed together), because group statistics are taken over the padded image:
    the detections do not depend on the batch.

    Subclasses set ``anchor_generator``, ``num_classes``, ``pre_nms_unit``, ``test_score_thresh``,
    ``test_topk_candidates``, ``test_nms_thresh`` and ``max_detections_per_image``, and give :meth:`decode_boxes`.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, in Detectron2's standard formats.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W), in training ``instances``, in inference optionally
                ``height`` and ``width`` of the wanted frame.

        Returns:
            In training the losses; in inference ``{"instances": ...}`` per image, in order.
        """
        if self.training:
            return super().forward(batched_inputs)
        return run_in_groups(self.backbone, batched_inputs, super().forward)

    def strides(self) -> list[int]:
        """Px per cell of each level of the head."""
        shapes = self.backbone.output_shape()
        return [shapes[name].stride for name in self.head_in_features]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of one image (px) after it is padded alone, as ``preprocess_image`` does."""
        return padded_size(self.backbone, height, width)

    def inside_image(self, anchors: list[Boxes], image_size: tuple[int, int]) -> list[Tensor]:
        """Which anchors belong to cells that start within the image's own padded size: L tensors, bool (H*W*A,)."""
        height, width = self.padded_size(*image_size)
        offset = getattr(self.anchor_generator, "offset", 0.0)
        inside = []
        for boxes, stride in zip(anchors, self.strides()):
            # the half pixel is for rounding: cells start at multiples of the stride, a whole number of px
            limit = boxes.tensor.new_tensor([width, height]) + offset * stride - 0.5
            inside.append((boxes.get_centers() < limit).all(dim=1))
        return inside

    # Inference

    def detects_at(self, logit: float) -> bool:
        """Whether a position with this class logit can become a detection."""
        return 1 / (1 + math.exp(-logit)) > self.test_score_thresh

    @abstractmethod
    def decode_boxes(self, level: int, anchors: Tensor, values: Tensor) -> Tensor:
        """Turn anchors (m, 4) of a level and the head's float32 box values at them into boxes (m, 4) XYXY px."""

    def detect_rows(
        self, logits: RowValues, box_values: RowValues, anchors: Sequence[Boxes], image_sizes: Sequence[Any]
    ) -> list[Instances]:
        """Turn the predictions of N images into detections, in px of each resized, unpadded image.

        Args:
            logits: A*K class logits a position, anchor-major.
            box_values: A times the same number of values a position, anchor-major.
            anchors: of L levels, XYXY in px of the padded batch.
            image_sizes: (height, width) of each resized image, px.
        """
        if logits.index is not None and self.detects_at(logits.base):
            # A threshold this low lets inactive positions through, so they must be looked at, too.
            self._tell_that_all_positions_count(logits.base)
            logits = type(logits)(logits.dense(), None, logits.base, logits.layout)
        all_rows = torch.arange(logits.layout.num_rows, device=logits.values.device)
        boxes = box_values.at(all_rows if logits.index is None else logits.index)
        boxes_at = type(logits)(boxes, logits.index, box_values.base, logits.layout)
        segments = [(p, x, b) for (p, x), (_, b) in zip(logits.per_segment(), boxes_at.per_segment())]
        return [
            self._detect([(a.tensor, *s) for a, s in zip(anchors, segments[i :: len(image_sizes)])], size)
            for i, size in enumerate(image_sizes)
        ]

    def _tell_that_all_positions_count(self, base: float) -> None:
        """Say once that sparse inference saves less than it could, and why."""
        score = 1 / (1 + math.exp(-base))
        log_first_n(
            logging.WARNING,
            f"The score threshold {self.test_score_thresh:g} is below the score of inactive positions, {score:.2g} "
            f"(class logit {base:g}): all positions of the maps go through the post-processing, and all boxes are "
            f"computed. For the speed of sparse inference set SCORE_THRESH_TEST to {score:.2g} or more.",
            name=__name__,
            key=("caller", "message"),
        )

    def _detect(self, levels: list[tuple[Tensor, Tensor, Tensor, Tensor]], image_size: Any) -> Instances:
        """Detections of one image.

        Args:
            levels: per level the anchors (H*W*A, 4); and positions (m,), logits (m, A*K) and box values (m, A*B) of
                the positions that may hold a detection.
            image_size: (height, width) of the resized image, px.
        """
        found = Instances.cat([self._candidates(level, *rows, image_size) for level, rows in enumerate(levels)])
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]

    def _candidates(
        self, level: int, anchors: Tensor, positions: Tensor, logits: Tensor, box_values: Tensor, image_size: Any
    ) -> Instances:
        """Boxes of one level that go into NMS; see ``_detect`` for the arguments."""
        scores = logits.float().sigmoid().view(-1, self.num_classes)  # (m*A, K)
        number, classes, scores = select_candidates(
            scores, self.test_score_thresh, self.test_topk_candidates, self.pre_nms_unit
        )
        per_position = self.anchor_generator.num_anchors[level]
        anchor_number = positions[number // per_position] * per_position + number % per_position
        values = box_values.float().reshape(-1, box_values.shape[1] // per_position)[number]
        boxes = Boxes(self.decode_boxes(level, anchors[anchor_number], values))
        boxes.clip(image_size)  # before NMS, as in the released code
        return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)


def per_anchor(rows: RowValues, dims: int) -> list[Tensor]:
    """Split the channels (A*dims) of dense rows: L tensors (N, H*W*A, dims)."""
    return [x.reshape(x.shape[0], -1, dims) for x in rows.layout.per_map(rows.values)]
