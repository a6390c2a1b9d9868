"""What all detectors share that predict at every cell of the feature maps.

Letters: N pictures; H, W rows and columns of a level; A anchors of a cell; K numbers per anchor. Boxes are XYXY in px
of the padded input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers import move_device_like
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn


def permute_to_N_HWA_K(tensor: Tensor, K: int) -> Tensor:
    """Reorder a prediction (N, A * K, H, W) to (N, H * W * A, K)."""
    assert tensor.dim() == 4, f"A prediction has 4 dimensions, not {tuple(tensor.shape)}."
    n, _, h, w = tensor.shape
    return tensor.view(n, -1, K, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, K)


class DenseDetector(nn.Module):
    """Normalises and pads the pictures, runs backbone and head, and leaves the rest to its subclasses.

    These fill ``forward_training`` and ``forward_inference``, and ``box2box_transform`` if they use the decoders.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: from pictures to feature maps.
            head: from the list of maps to a list of predictions, each a list with one tensor (N, A * K, H, W) a level.
            head_in_features: names of the maps for the head; default: all, finest first.
            pixel_mean, pixel_std: of each channel, in the order and unit of the pictures; they are not saved.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = head_in_features
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x: Tensor) -> Tensor:
        return move_device_like(x, self.pixel_mean)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training mode, else detections.

        Args:
            batched_inputs: one dict a picture, as ``DatasetMapper`` makes them: ``image`` (C, H, W), in training
                ``instances`` with ``gt_boxes`` and ``gt_classes``, and else, optionally, ``height`` and ``width`` in px
                of the picture that the boxes shall refer to (default: of ``image``).

        Returns:
            Losses by name, or one dict a picture with ``instances``.
        """
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        outputs = (images, features, self.head(features))
        if self.training:
            assert "instances" in batched_inputs[0], (
                "In training mode each input needs 'instances'; call eval() to detect."
            )
            return self.forward_training(*outputs, [x["instances"].to(self.device) for x in batched_inputs])
        return [
            {"instances": detector_postprocess(found, x.get("height", size[0]), x.get("width", size[1]))}
            for found, x, size in zip(self.forward_inference(*outputs), batched_inputs, images.image_sizes)
        ]

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses by name; see ``__init__`` for the predictions."""
        raise NotImplementedError

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Detections of each picture, in px of the picture before padding; see ``__init__`` for the predictions."""
        raise NotImplementedError

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the pictures and pad them, on the model's device."""
        raw = (self._move_to_current_device(x["image"]) for x in batched_inputs)
        return ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in raw],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _transpose_dense_predictions(
        self, predictions: Sequence[Sequence[Tensor]], dims_per_anchor: Sequence[int]
    ) -> list[list[Tensor]]:
        """Reorder each prediction of each level to (N, H * W * A, K), where K is its ``dims_per_anchor``."""
        assert len(predictions) == len(dims_per_anchor), f"{len(predictions)} predictions, {len(dims_per_anchor)} dims."
        return [[permute_to_N_HWA_K(x, k) for x in levels] for levels, k in zip(predictions, dims_per_anchor)]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Move the attribute ``name`` towards ``value``, and return it.

        Used for the number of foreground anchors that losses are divided by: from batch to batch it varies a lot. It
        is a plain attribute, so checkpoints do not have it.
        """
        new = getattr(self, name, initial_value) * momentum + value * (1 - momentum)
        setattr(self, name, new)
        return new

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """The best detections of one level of one picture, without suppression.

        Args:
            anchors: H * W * A boxes.
            pred_scores: (H * W * A, K), in [0, 1]; an anchor may count for several classes.
            pred_deltas: (H * W * A, 4), for ``box2box_transform``.
            score_thresh: least score, exclusive.
            topk_candidates: largest number of detections.
            image_size: (height, width) in px.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, best first.
        """
        candidates = pred_scores > score_thresh
        scores = pred_scores[candidates]
        indices = candidates.nonzero()  # (number, 2): anchor and class
        num = indices.shape[0]  # a tensor in traces
        num = num.clamp(max=topk_candidates) if isinstance(num, Tensor) else min(num, topk_candidates)
        scores, order = scores.topk(num)
        anchor_idxs, classes = indices[order].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[anchor_idxs], anchors.tensor[anchor_idxs])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _decode_multi_level_predictions(
        self,
        anchors: Sequence[Boxes],
        pred_scores: Sequence[Tensor],
        pred_deltas: Sequence[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """The best detections of each level of one picture, level by level; see the method for one level."""
        per_level = [
            self._decode_per_level_predictions(a, s, d, score_thresh, topk_candidates, image_size)
            for s, d, a in zip(pred_scores, pred_deltas, anchors)
        ]
        return Instances.cat(per_level)

    def visualize_training(self, batched_inputs: list[dict[str, Any]], results: list[Instances]) -> None:
        """Put a drawing of the first picture into the event storage: the objects above, up to 20 detections below.

        Needs ``input_format``, the order of the channels. Nothing calls it unless a subclass does.
        """
        from detectron2.data.detection_utils import convert_image_to_rgb  # imports this package
        from detectron2.utils.visualizer import Visualizer

        assert len(batched_inputs) == len(results), f"{len(batched_inputs)} inputs, {len(results)} results."
        first, max_boxes = batched_inputs[0], 20
        image = convert_image_to_rgb(first["image"].permute(1, 2, 0), self.input_format)
        detections = detector_postprocess(results[0], *image.shape[:2]).pred_boxes.tensor[:max_boxes]
        drawings = [
            Visualizer(image, None).overlay_instances(boxes=boxes).get_image()
            for boxes in (first["instances"].gt_boxes, detections.detach().cpu().numpy())
        ]
        name = f"Top: GT bounding boxes; Bottom: {max_boxes} Highest Scoring Results"
        get_event_storage().put_image(name, np.vstack(drawings).transpose(2, 0, 1))
