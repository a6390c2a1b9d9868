"""Drawing of detections and of annotations on an image."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch
from detectron2._missing import refuse
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils._drawing import Color, Shapes, VisImage, as_bitmask, darker, middle_of
from detectron2.utils.colormap import colormap

__all__ = ["ColorMode", "VisImage", "Visualizer"]
__getattr__ = refuse(__name__, "GenericMask")


@unique
class ColorMode(Enum):
    """How instances get their colors."""

    IMAGE = 0  # each another one
    SEGMENTATION = 1  # by class, as the metadata says; masks are less transparent
    IMAGE_BW = 2  # as IMAGE, on an image that is gray outside masks


class Visualizer(Shapes):
    """Draws on one image, (H, W, 3) with values from 0 to 255.

    Args:
        metadata: of the data set, with names (``thing_classes``) and colors (``thing_colors``, RGB from 0 to 255).
        scale: size of the drawn image by that of the given one.
        font_size_scale: factor of the size of texts.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.clip(np.asarray(img_rgb), 0, 255).astype(np.uint8)
        self.metadata = Metadata() if metadata is None else metadata
        self._mode = instance_mode
        super().__init__(VisImage(self.img, scale), font_size_scale)

    def get_output(self) -> VisImage:
        """The drawn image."""
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw what a detector found: any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``.

        ``jittering`` varies the colors of instances of one class, where classes have colors.
        """
        found = predictions.get_fields()
        masks = self._masks(found.get("pred_masks"))
        classes = None if found.get("pred_classes") is None else _array(found["pred_classes"]).tolist()
        alpha = {ColorMode.IMAGE: 0.5, ColorMode.SEGMENTATION: 0.8, ColorMode.IMAGE_BW: 0.3}[self._mode]
        if self._mode == ColorMode.IMAGE_BW:  # gray outside the masks
            colored = np.logical_or.reduce([np.zeros(self.img.shape[:2], dtype=bool), *(masks or ())])
            self.output.reset_image(np.where(colored[:, :, None], self.img, self.img.mean(axis=2, keepdims=True)))
        return self.overlay_instances(
            boxes=found.get("pred_boxes"),
            labels=self._labels(classes, found.get("scores")),
            masks=masks,
            assigned_colors=self._class_colors(classes, varied=jittering),
            alpha=alpha,
        )

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the ``annotations`` of a record: ``bbox`` with ``bbox_mode``, ``category_id``, ``iscrowd`` and
        ``segmentation``, as far as all of them have these."""
        annotations = dic.get("annotations") or []
        parts = {key: [a[key] for a in annotations] for key in set.intersection(*map(set, annotations or [{}]))}
        classes = parts.get("category_id")
        labels = self._labels(classes, None)
        if labels is not None:
            labels = [f"{name}|crowd" if a.get("iscrowd") else name for name, a in zip(labels, annotations)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations if "bbox" in parts]
        return self.overlay_instances(
            boxes=boxes or None,
            labels=labels,
            masks=parts.get("segmentation"),
            assigned_colors=self._class_colors(classes, varied=True),
        )

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw N instances, large ones first.

        Args:
            boxes: ``Boxes``, or (N, 4) XYXY px.
            labels: N texts.
            masks: ``BitMasks``, ``PolygonMasks``, (N, H, W), or N of what an annotation has as ``segmentation``.
            assigned_colors: N colors; by default all are different.
            alpha: of masks.

        Raises:
            ValueError: for boxes that are not four numbers, such as rotated ones, and parts of different length.
        """
        bitmasks = self._masks(masks)
        corners = None if boxes is None else _array(boxes).reshape(len(boxes), -1 if len(boxes) else 4)
        given = {"boxes": corners, "labels": labels, "masks": bitmasks, "colors": assigned_colors}
        counts = {name: len(part) for name, part in given.items() if part is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"Instances need as many of each part, but there are {counts}.")
        count = max(counts.values(), default=0)
        if corners is not None and corners.shape[1] != 4:
            raise ValueError(f"Boxes have {corners.shape[1]} numbers; expected x0, y0, x1, y1.")
        palette = colormap(rgb=True, maximum=1)
        if assigned_colors is None:
            assigned_colors = [palette[i % len(palette)] for i in range(count)]
        areas = [m.sum() for m in bitmasks or ()] if corners is None else (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        for i in np.argsort(-np.asarray(areas), kind="stable").tolist():
            color, place = assigned_colors[i], None
            if bitmasks is not None:
                self.draw_binary_mask(bitmasks[i], color, edge_color=darker(color), alpha=alpha, area_threshold=None)
                place = middle_of(bitmasks[i]) if bitmasks[i].any() else None
            if corners is not None:
                self.draw_box(corners[i], edge_color=color, alpha=0.8)
                place = self._above(corners[i])
            if labels is not None and place is not None:
                bright = color if isinstance(color, str) else 0.6 + 0.4 * np.array(color)
                self.draw_text(labels[i], place, color=bright, horizontal_alignment="left")
        return self.output

    def _masks(self, masks: Any) -> list[np.ndarray] | None:
        return None if masks is None else [as_bitmask(mask, *self.img.shape[:2]) for mask in masks]

    def _labels(self, classes: list[int] | None, scores: Any) -> list[str] | None:
        """Names of classes, or their numbers where they have none, and scores in percent, as far as there are any."""
        names = self.metadata.get("thing_classes") or []
        parts = []
        if classes is not None:
            parts.append([names[c] if 0 <= c < len(names) else str(c) for c in classes])
        if scores is not None:
            parts.append([f"{score:.0%}" for score in _array(scores).tolist()])
        return [" ".join(words) for words in zip(*parts)] if parts else None

    def _class_colors(self, classes: list[int] | None, *, varied: bool) -> list[Color] | None:
        """Colors of the metadata in the mode that asks for them; varied: by up to a tenth in brightness."""
        colors = self.metadata.get("thing_colors")
        if self._mode != ColorMode.SEGMENTATION or classes is None or not colors:
            return None
        factors = 1 - 0.1 * (np.arange(len(classes)) % 4) / 3 * varied
        return [factor * np.array(colors[c]) / 255 for c, factor in zip(classes, factors)]

    def _above(self, box: np.ndarray) -> tuple[float, float]:
        """Where a box's label begins: above its corner, or within it where the image ends."""
        height = 1.3 * self._font / self.output.scale
        return float(max(box[0], 0)), float(box[1] - height if box[1] >= height else max(box[1], 0))


def _array(values: Any) -> np.ndarray:
    """Boxes, a tensor on any device, or anything that numpy takes."""
    values = getattr(values, "tensor", values)
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
