"""Anchors: boxes of fixed sizes at every cell of the feature maps.

Letters: A anchors of a cell; H, W rows and columns of a level. Boxes are XYXY in px of the padded input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, move_device_like
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry
from torch import Tensor, nn

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = "Modules that make anchors, called with (cfg, [ShapeSpec of each level])."

__getattr__ = refuse(__name__, ["RotatedAnchorGenerator"])


class BufferList(nn.Module):
    """A list of tensors that move with the module and are not saved."""

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._buffers.values())


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of the given sizes and aspect ratios, centred at each cell (arXiv:1506.01497)."""

    box_dim: int = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[float] | Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """Make the anchors of one cell of each level.

        Args:
            sizes: square roots of the areas in px, one list for all levels or one a level.
            aspect_ratios: height / width, one list for all levels or one a level.
            strides: px per cell of each level.
            offset: centre of the first cell in strides, in [0, 1).
        """
        super().__init__()
        assert 0.0 <= offset < 1.0, f"offset must be in [0, 1), not {offset}."
        self.strides = strides
        self.num_features = len(strides)
        sizes = _per_level(sizes, self.num_features, "sizes")
        aspect_ratios = _per_level(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = BufferList(self.generate_cell_anchors(s, a) for s, a in zip(sizes, aspect_ratios))
        self.offset = offset

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.ANCHOR_GENERATOR`` and the levels' strides."""
        keys = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": keys.SIZES,
            "aspect_ratios": keys.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": keys.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Number of anchors of a cell of each level."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """Another name of ``num_anchors``."""
        return self.num_anchors

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Anchors (A, 4) around (0, 0), by size and, for equal sizes, by aspect ratio."""
        half_sides = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2.0 / ratio)  # width * height = size², height = ratio * width
                half_sides.append((width / 2.0, ratio * width / 2.0))
        return torch.tensor([[-x, -y, x, y] for x, y in half_sides], dtype=torch.float32)

    def _grid_anchors(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Anchors (H * W * A, 4) of each level, given its (H, W): row by row, cell by cell, as in the cell."""
        anchors = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors):
            x = move_device_like(torch.arange(self.offset * stride, width * stride, stride, dtype=torch.float32), cell)
            y = move_device_like(torch.arange(self.offset * stride, height * stride, stride, dtype=torch.float32), cell)
            y, x = (axis.reshape(-1) for axis in torch.meshgrid(y, x, indexing="ij"))
            centres = torch.stack((x, y, x, y), dim=1)  # (H * W, 4)
            anchors.append((centres[:, None] + cell[None]).reshape(-1, 4))
        return anchors

    def forward(self, features: Sequence[Tensor]) -> list[Boxes]:
        """Anchors of each level.

        Args:
            features: maps (N, C, H, W) of the levels; only H and W matter.

        Returns:
            H * W * A boxes a level; rows are the slowest index, anchors of the cell the fastest.
        """
        return [Boxes(x) for x in self._grid_anchors([f.shape[-2:] for f in features])]


def build_anchor_generator(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> nn.Module:
    """The registered anchor generator named by ``cfg.MODEL.ANCHOR_GENERATOR.NAME``."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


def _per_level(values: Any, num_levels: int, name: str) -> Sequence[Sequence[float]]:
    """One list a level, from one for all or one for each."""
    assert isinstance(values, Sequence), f"Anchor {name} must be a list, not {values}."
    assert len(values), f"Anchor {name} must not be empty."
    lists = values if isinstance(values[0], Sequence) else [values]
    repeats = num_levels if len(lists) == 1 else 1
    assert len(lists) * repeats == num_levels, f"Anchor {name}: {len(lists)} lists for {num_levels} feature maps."
    return [*lists] * repeats
