"""What detectors share whose head predicts at every place of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn


def permute_to_N_HWA_K(tensor: Tensor, K: int) -> Tensor:
    """Reorder a prediction (N, A * K, H, W), K values for each of A anchors, to (N, H * W * A, K)."""
    assert tensor.dim() == 4, f"expected a map (N, A * K, H, W), got a tensor of shape {tuple(tensor.shape)}"
    return tensor.movedim(1, -1).unflatten(-1, (-1, K)).flatten(1, 3)


class DenseDetector(nn.Module):
    """Backbone and head; subclasses give :meth:`forward_training` and :meth:`forward_inference`.

    Args:
        head: turns the list of the backbone's maps into predictions, in the form that the subclass knows.
        head_in_features: names of the maps for the head; by default all, finest first.
        pixel_mean, pixel_std: of each channel of the image.
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
        super().__init__()
        self.backbone, self.head = backbone, head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = head_in_features
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).float()[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where images go."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect, in Detectron2's standard formats.

        Takes for each image ``image`` (C, H, W); in training ``instances`` with ``gt_boxes`` and ``gt_classes`` (else
        AssertionError); in inference optionally ``height`` and ``width`` of the frame for the detections. Gives losses
        by name in training; otherwise, for each image, ``{"instances": ...}`` with ``pred_boxes``, ``scores`` and
        ``pred_classes``.
        """
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        inputs = [maps[name] for name in self.head_in_features]
        if self.training:
            return self.forward_training(images, inputs, self.head(inputs), self._ground_truth(batched_inputs))
        found = self.forward_inference(images, inputs, self.head(inputs))
        detections = []
        for record, instances, size in zip(batched_inputs, found, images.image_sizes):
            frame = [record.get(side, px) for side, px in zip(("height", "width"), size)]
            detections.append({"instances": detector_postprocess(instances, *frame)})
        return detections

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Any, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Turn maps, the head's predictions and the ground truth of N images into losses by name."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is trained")

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: Any) -> list[Instances]:
        """Turn maps and the head's predictions into detections, in px of each image before it was padded."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it detects")

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize images, then pad them with 0 to one size that suits the backbone."""
        raw = (record["image"].to(self.device) for record in batched_inputs)
        normalized = [(image - self.pixel_mean).div_(self.pixel_std) for image in raw]
        wishes = self.backbone.size_divisibility, self.backbone.padding_constraints
        return ImageList.from_tensors(normalized, wishes[0], padding_constraints=wishes[1])

    def _ground_truth(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        lacking = [number for number, record in enumerate(batched_inputs) if "instances" not in record]
        assert not lacking, f"images {lacking} of the batch have no 'instances' to train with"
        return [record["instances"].to(self.device) for record in batched_inputs]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Move the running average in attribute ``name``, which is not saved, to ``value`` and give it.

        It starts at ``initial_value``; ``momentum`` is the share of it that stays.
        """
        average = momentum * getattr(self, name, initial_value) + (1 - momentum) * value
        setattr(self, name, average)
        return average
