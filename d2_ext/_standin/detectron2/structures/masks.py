"""Masks of the instances of one picture, as polygons or as bitmaps: what the data path and the visualizer need."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._missing import refuse

from .boxes import Boxes

__all__ = ["BitMasks", "PolygonMasks", "polygon_area", "polygons_to_bitmask"]

__getattr__ = refuse(__name__, ["ROIMasks", "rasterize_polygons_within_box"])


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area in px^2 of the polygon with corners (x[i], y[i]), by the shoelace formula."""
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool union of polygons, each flat [x0, y0, x1, y1, ...] px; all False without polygons."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    rles = mask_util.frPyObjects([np.asarray(p).reshape(-1).tolist() for p in polygons], height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


class BitMasks:
    """Bitmaps.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: (H, W).
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(tensor).to(torch.bool)
        assert tensor.dim() == 3, f"expected masks (N, H, W), got shape {tuple(tensor.shape)}"
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.Tensor) -> BitMasks:
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """(N,) bool, whether a mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | Sequence[Sequence[np.ndarray]], height: int, width: int
    ) -> BitMasks:
        """Rasterise the polygons of each instance."""
        masks = np.zeros((len(polygon_masks), height, width), dtype=bool)
        for mask, polygons in zip(masks, polygon_masks):
            mask[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(masks)

    def get_bounding_boxes(self) -> Boxes:
        """(N, 4) XYXY px, right and lower edges behind the last pixel; zeros for an empty mask."""
        boxes = torch.zeros(len(self), 4)
        for box, mask in zip(boxes, self.tensor):
            ys, xs = torch.nonzero(mask, as_tuple=True)
            if len(xs) > 0:
                box[:] = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """All masks of a non-empty list."""
        return type(bitmasks_list[0])(torch.cat([masks.tensor for masks in bitmasks_list]))


class PolygonMasks:
    """Polygons.

    Args:
        polygons: for each instance a list of polygons, each flat [x0, y0, x1, y1, ...] px with at least three corners.

    Attributes:
        polygons: the same as float64 arrays, always on the CPU.

    Raises:
        ValueError: something is not a list, or not a polygon.
    """

    def __init__(self, polygons: list[list[Any]]) -> None:
        for level in (polygons, *(polygons if isinstance(polygons, list) else [])):
            if not isinstance(level, list):
                raise ValueError(f"polygons must be a list of instances, each a list of polygons; got {type(level)}")
        self.polygons = [[self._as_array(p) for p in instance] for instance in polygons]

    @staticmethod
    def _as_array(polygon: Any) -> np.ndarray:
        array = np.asarray(polygon.cpu() if isinstance(polygon, torch.Tensor) else polygon).astype("float64")
        if len(array) % 2 != 0 or len(array) < 6:
            raise ValueError(f"a polygon has an even number of coordinates, at least 6; got {len(array)}")
        return array

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """The object itself: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> PolygonMasks:
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, torch.Tensor):
            item = (item.nonzero().squeeze(1) if item.dtype == torch.bool else item).tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """(N,) bool, whether an instance has a polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """(N, 4) XYXY px around the polygons of each instance; zeros if it has none."""
        boxes = torch.zeros(len(self), 4)
        for box, polygons in zip(boxes, self.polygons):
            if polygons:
                corners = torch.from_numpy(np.concatenate(polygons).reshape(-1, 2))
                box[:2] = corners.amin(dim=0)
                box[2:] = corners.amax(dim=0).clamp(min=0)
        return Boxes(boxes)

    def area(self) -> torch.Tensor:
        """(N,) float64 px^2, the sum over the polygons of an instance."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in polygons) for polygons in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """All instances of a non-empty list."""
        return type(polymasks_list[0])([*itertools.chain.from_iterable(masks.polygons for masks in polymasks_list)])
