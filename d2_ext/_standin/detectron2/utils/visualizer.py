"""Drawing of boxes, labels, masks and keypoints on pictures (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import matplotlib.colors as mplc
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._missing import refuse
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks

from ._drawing import Color, VisImage, _Primitives
from .colormap import random_color

__all__ = ["ColorMode", "VisImage", "Visualizer"]

__getattr__ = refuse(__name__, ["_PanopticPrediction", "RotatedBoxes"])

_SMALL_OBJECT_AREA_THRESH = 1000  # px^2
_SMALL_OBJECT_HEIGHT = 40  # px
_KEYPOINT_THRESHOLD = 0.05
_RED = (1.0, 0.0, 0.0)


@unique
class ColorMode(Enum):
    """How instances are coloured: at random, by class, or at random on a grey picture."""

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class GenericMask:
    """Mask of one instance, from polygons, RLE or a bitmap.

    Args:
        mask_or_polygons: list of flat polygons [x0, y0, ...] px, RLE dict, or (height, width) array.
        height: px of the picture.
        width: px of the picture.

    Attributes:
        polygons: the polygons, or None if the mask was not given as such.
        mask: (height, width) uint8.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.polygons = None
        given = mask_or_polygons
        if isinstance(given, list):
            self.polygons = [np.asarray(polygon).reshape(-1) for polygon in given]
            given = mask_util.merge(mask_util.frPyObjects([p.tolist() for p in self.polygons], height, width))
        elif isinstance(given, dict) and isinstance(given["counts"], list):
            given = mask_util.frPyObjects(given, height, width)
        array = mask_util.decode(given) if isinstance(given, dict) else np.asarray(given)
        assert array.shape == (height, width), f"mask of {array.shape} on a picture of {(height, width)}"
        self.mask = array.astype("uint8")

    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """(4,) XYXY px around all pixels; zeros for an empty mask."""
        x, y, width, height = mask_util.toBbox(mask_util.encode(np.asfortranarray(self.mask)))
        return np.array([x, y, x + width, y + height])


class Visualizer(_Primitives):
    """Draws on a picture; for looking at results, not for speed.

    Args:
        img_rgb: (H, W, 3) RGB in 0..255.
        metadata: of the data set; its ``thing_classes``, ``thing_colors`` and keypoint rules are used if present.
        scale: size of the result relative to the picture.
        instance_mode: how instances are coloured.
        font_size_scale: factor of the automatic font size.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        # Grows with the picture, but never below what can be read.
        readable = max(np.sqrt(self.output.height * self.output.width) // 90, 10 // scale)
        self._default_font_size = readable * font_size_scale
        self._instance_mode = instance_mode
        self.keypoint_threshold = _KEYPOINT_THRESHOLD

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw what a model has found.

        Args:
            predictions: on the CPU, in px of the picture, with any of ``pred_boxes``, ``scores``, ``pred_classes``,
                ``pred_masks``, ``pred_keypoints``.
            jittering: vary the colours of a class a little, if colours go by class.
        """
        fields = predictions.get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        scores = fields["scores"].tolist() if "scores" in fields else None
        masks = fields.get("pred_masks")
        if self._instance_mode == ColorMode.IMAGE_BW:
            found = None if masks is None else np.asarray(masks).any(axis=0)
            self.output.reset_image(self._create_grayscale_image(found))
        colors = self._class_colors(classes, jittering)
        by_class = {ColorMode.IMAGE_BW: 0.3, ColorMode.SEGMENTATION: 0.8 if colors else 0.5}
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes")),
            masks=masks,
            keypoints=fields.get("pred_keypoints"),
            assigned_colors=colors,
            alpha=by_class.get(self._instance_mode, 0.5),
        )

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of a record; crowds are marked in their labels."""
        annos = dic.get("annotations") or []
        if not annos:
            return self.output
        classes = [anno["category_id"] for anno in annos]
        crowd = [anno.get("iscrowd", 0) for anno in annos]
        keypoints = None
        if "keypoints" in annos[0]:
            keypoints = np.array([anno["keypoints"] for anno in annos]).reshape(len(annos), -1, 3)
        return self.overlay_instances(
            boxes=[BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos],
            labels=_create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd),
            masks=[anno["segmentation"] for anno in annos] if "segmentation" in annos[0] else None,
            keypoints=keypoints,
            assigned_colors=self._class_colors(classes, True),
        )

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, the largest first, so that small ones stay visible.

        Args:
            boxes: ``Boxes`` or (N, 4) XYXY px.
            labels: N texts.
            masks: ``BitMasks``, ``PolygonMasks``, (N, H, W), or N of what :class:`GenericMask` takes.
            keypoints: ``Keypoints`` or (N, K, 3) x px, y px, score or visibility.
            assigned_colors: N colours, drawn at random by default.
            alpha: opacity of the masks.
        """
        boxes = None if boxes is None else self._convert_boxes(boxes)
        masks = None if masks is None else self._convert_masks(masks)
        keypoints = None if keypoints is None else self._convert_keypoints(keypoints)
        counts = {len(given) for given in (boxes, masks, keypoints) if given is not None}
        assert len(counts) <= 1, f"boxes, masks and keypoints are of different numbers of instances: {counts}"
        count = counts.pop() if counts else 0
        assert labels is None or len(labels) == count, f"{len(labels or ())} labels for {count} instances"
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(count)]

        for i in _largest_first(boxes, masks, count):
            color, (box, mask, label) = assigned_colors[i], (x if x is None else x[i] for x in (boxes, masks, labels))
            if box is not None:
                self.draw_box(box, edge_color=color)
            if mask is not None:
                self._draw_mask(mask, color, alpha)
            if labels is not None:
                self._draw_label(label, box, mask, color)
        for points in [] if keypoints is None else keypoints:
            self.draw_and_connect_keypoints(points)
        return self.output

    def _draw_label(self, label: str, box: np.ndarray | None, mask: GenericMask | None, color: Color) -> None:
        """Write at the box's corner, or in the middle of the mask; beside the object if it is small."""
        if box is None and (mask is None or mask.area() == 0):
            return
        x0, y0, x1, y1 = mask.bbox() if box is None else box
        position = (x0, y0) if box is not None else tuple(np.median(mask.mask.nonzero(), axis=1)[::-1])
        scale = self.output.scale
        if (y1 - y0) * (x1 - x0) < _SMALL_OBJECT_AREA_THRESH * scale or y1 - y0 < _SMALL_OBJECT_HEIGHT * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        share = (y1 - y0) / np.sqrt(self.output.height * self.output.width)
        size = np.clip((share - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size
        self.draw_text(
            label,
            position,
            font_size=size,
            color=self._change_color_brightness(color, 0.7),
            horizontal_alignment="center" if box is None else "left",
        )

    def draw_and_connect_keypoints(self, keypoints: np.ndarray) -> VisImage:
        """Draw one instance's (K, 3) keypoints above the threshold, and lines between them by the metadata's rules."""
        visible = {i: (x, y) for i, (x, y, score) in enumerate(keypoints) if score > self.keypoint_threshold}
        for point in visible.values():
            self.draw_circle(point, color=_RED)
        names = self.metadata.get("keypoint_names")
        place = {name: visible[i] for i, name in enumerate(names or ()) if i in visible}
        for start, end, color in self.metadata.get("keypoint_connection_rules") or ():
            if start in place and end in place:
                xs, ys = zip(place[start], place[end])
                self.draw_line(xs, ys, color=[channel / 255 for channel in color])
        return self.output

    def get_output(self) -> VisImage:
        """The picture with everything drawn so far."""
        return self.output

    def _draw_mask(self, mask: GenericMask, color: Color, alpha: float) -> None:
        if mask.polygons is None:
            self._overlay(mplc.to_rgb(color), np.where(mask.mask, alpha, 0.0))
        for polygon in mask.polygons or ():
            self.draw_polygon(polygon.reshape(-1, 2), color, alpha=alpha)

    def _class_colors(self, classes: Sequence[int] | None, jittering: bool) -> list[Color] | None:
        """Colours of the metadata, if the mode asks for them and there are some."""
        palette = self.metadata.get("thing_colors")
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None
        colors = [tuple(channel / 255 for channel in palette[c]) for c in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _jitter(self, color: Color) -> tuple[float, ...]:
        """A slightly different, lighter colour."""
        direction = np.random.rand(3)
        return tuple(np.clip(mplc.to_rgb(color) + direction / np.linalg.norm(direction) * 0.5, 0, 1))

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """(H, W, 3) grey picture that keeps its colours where the (H, W) mask is set."""
        gray = np.repeat(self.img.astype("f4").mean(axis=2, keepdims=True), 3, axis=2)
        return gray if mask is None else np.where(mask[:, :, None], self.img, gray)

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        """(N, 4) XYXY px."""
        array = boxes.tensor.detach().cpu().numpy() if isinstance(boxes, Boxes) else np.asarray(boxes)
        return array.reshape(-1, 4)

    def _convert_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, (PolygonMasks, BitMasks)):
            masks = masks.polygons if isinstance(masks, PolygonMasks) else masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = masks.cpu().numpy()
        size = self.output.height, self.output.width
        return [m if isinstance(m, GenericMask) else GenericMask(m, *size) for m in masks]

    def _convert_keypoints(self, keypoints: Any) -> np.ndarray:
        """(N, K, 3)."""
        return np.asarray(keypoints.tensor if isinstance(keypoints, Keypoints) else keypoints)


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """Texts such as ``"ship 87%"`` or ``"ship|crowd"``, of what is known; None if nothing is."""
    if classes is None and scores is None:
        return None
    count = len(scores if classes is None else classes)
    parts: list[list[str]] = [[] for _ in range(count)]
    for i, words in enumerate(parts):
        if classes is not None:
            words.append(class_names[classes[i]] if class_names else str(classes[i]))
        if scores is not None:
            words.append(f"{scores[i] * 100:.0f}%")
    suffixes = [""] * count if is_crowd is None else ["|crowd" if crowd else "" for crowd in is_crowd]
    return [" ".join(words) + suffix for words, suffix in zip(parts, suffixes)]


def _largest_first(boxes: np.ndarray | None, masks: Sequence[GenericMask] | None, count: int) -> list[int]:
    """Order of drawing, by the area of the boxes or else of the masks."""
    if boxes is not None:
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    elif masks is not None:
        areas = np.array([mask.area() for mask in masks])
    else:
        return [*range(count)]
    return np.argsort(-areas).tolist()
