"""Masks of the objects of an image, as bits or as polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.structures._rows import Rows
from detectron2.structures.boxes import Boxes
from pycocotools import mask as coco_mask


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Fill polygons (x0, y0, x1, y1, ...), in px: (height, width) bool, true inside of any of them."""
    if not len(polygons):
        return np.zeros((height, width), dtype=bool)
    outlines = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.frPyObjects(outlines, height, width)).any(axis=2)


class BitMasks(Rows):
    """N masks of the size of their image: ``tensor`` is (N, H, W) bool, ``image_size`` H and W."""

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        """Raises an AssertionError if ``tensor`` is not (N, H, W); nonzero counts as inside."""
        self.tensor = torch.as_tensor(tensor).bool()
        if self.tensor.dim() != 3:
            raise AssertionError(f"Masks of shape (N, H, W) were expected, not {tuple(self.tensor.shape)}.")
        self.image_size = self.tensor.shape[1:]

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: whether any pixel is inside."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | Sequence[Sequence[np.ndarray]], height: int, width: int
    ) -> BitMasks:
        """Fill the polygons of N objects, see :func:`polygons_to_bitmask`."""
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(masks) if masks else np.zeros((0, height, width)))

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes around the masks, up to the far edges of the last pixels; zeros for an empty mask."""
        ends = []
        for across in (1, 2):  # columns, then rows
            hit = self.tensor.any(dim=across).int()
            first, last = hit.argmax(dim=1), hit.shape[1] - hit.flip(1).argmax(dim=1)
            ends.append(torch.stack([first, last], dim=1) * hit.any(dim=1)[:, None])
        return Boxes(torch.stack(ends, dim=2).flatten(1))


class PolygonMasks:
    """N masks: ``polygons`` has for each object its polygons, float64 arrays x0, y0, x1, y1, ... in px."""

    def __init__(self, polygons: list[list[Any]]) -> None:
        """ValueError if it is no list of lists, or a polygon has an odd number of values or fewer than six."""
        if not isinstance(polygons, list) or not all(isinstance(each, list) for each in polygons):
            raise ValueError(f"A list with a list of polygons for every object was expected, not {polygons!r}.")
        self.polygons = [[np.asarray(polygon, dtype=np.float64) for polygon in each] for each in polygons]
        for polygon in chain.from_iterable(self.polygons):
            if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(f"Three or more points x, y in one row were expected, not {polygon.tolist()}.")

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """The same object: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> PolygonMasks:
        """Some of the masks, by an integer, a slice, indices, or a bool tensor of (N,)."""
        if isinstance(item, torch.Tensor):
            item = (item.nonzero()[:, 0] if item.dtype == torch.bool else item).tolist()
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        return PolygonMasks([self.polygons[place] for place in ([item] if isinstance(item, int) else item)])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The polygons of each object."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """(N,) bool: whether there is any polygon."""
        return torch.tensor([bool(each) for each in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """The smallest boxes around all points of a mask; zeros without polygons."""
        rows = []
        for each in self.polygons:
            points = np.concatenate(each or [np.zeros(2)]).reshape(-1, 2)
            rows.append([*points.min(axis=0), *points.max(axis=0)])
        return Boxes(rows)

    def area(self) -> torch.Tensor:
        """(N,) float64 areas in px²; polygons that overlap count twice."""
        corners = ([polygon[0::2] + 1j * polygon[1::2] for polygon in each] for each in self.polygons)
        # half the sum of the cross products of a polygon's sides
        areas = [sum(abs(np.sum((p.conj() * np.roll(p, -1)).imag)) / 2 for p in each) for each in corners]
        return torch.tensor(areas, dtype=torch.float64)

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """The masks of several ``PolygonMasks``, in order."""
        return PolygonMasks(list(chain.from_iterable(polymasks_list)))
