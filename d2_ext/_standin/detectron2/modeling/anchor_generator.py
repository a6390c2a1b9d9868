"""Anchors: the boxes, several at every place of a feature map, that a dense detector starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2._missing import refuse
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry
from torch import Tensor, nn

__getattr__ = refuse(__name__, "RotatedAnchorGenerator")

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = "What makes anchors; called with (cfg, [ShapeSpec of each level])."


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of every size and aspect ratio at every place of the feature maps.

    Args:
        sizes: square roots of the anchors' areas, px; a list for each level, or one list for all of them.
        aspect_ratios: heights over widths, given in the same way.
        offset: where in its cell an anchor has its center, as a share of the stride, in [0, 1).
    """

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
        super().__init__()
        assert 0 <= offset < 1, f"offset {offset}: expected a share of the stride, from 0 to below 1"
        self.strides = list(strides)
        self.offset = offset
        recipes = zip(_rows(sizes, len(strides), "sizes"), _rows(aspect_ratios, len(strides), "aspect ratios"))
        for level, recipe in enumerate(recipes):
            # Not saved: whoever changes the anchors can still load old weights.
            self.register_buffer(f"cell_{level}", self.generate_cell_anchors(*recipe), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from ``MODEL.ANCHOR_GENERATOR`` and the strides of the levels."""
        keys = cfg.MODEL.ANCHOR_GENERATOR
        lists = {"sizes": keys.SIZES, "aspect_ratios": keys.ASPECT_RATIOS}
        return {**lists, "strides": [level.stride for level in input_shape], "offset": keys.OFFSET}

    @property
    def cell_anchors(self) -> list[Tensor]:
        """Anchors (A, 4) of each level around the origin, XYXY px."""
        return [self.get_buffer(f"cell_{level}") for level in range(len(self.strides))]

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per place, A, of each level."""
        return [len(cell) for cell in self.cell_anchors]

    num_cell_anchors = num_anchors

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Make the anchors (A, 4) of one place around the origin, XYXY px: by size, then by aspect ratio."""
        ratios = torch.tensor(aspect_ratios, dtype=torch.float64)
        areas = torch.tensor(sizes, dtype=torch.float64).square()
        widths = (areas[:, None] / ratios).sqrt().flatten()
        half = torch.stack([widths, widths * ratios.repeat(len(areas))], dim=1) / 2
        return torch.cat([-half, half], dim=1).float()

    def forward(self, features: Sequence[Tensor]) -> list[Boxes]:
        """Anchors of maps (N, C, H, W), H * W * A each, XYXY px: by row, by column, then as in ``cell_anchors``."""
        levels = zip(features, self.cell_anchors, self.strides)
        return [Boxes(self._spread(cell, stride, *x.shape[-2:])) for x, cell, stride in levels]

    def _spread(self, cell: Tensor, stride: int, height: int, width: int) -> Tensor:
        """Repeat the anchors (A, 4) of one place at all places: (H * W * A, 4)."""
        first, like = self.offset * stride, {"dtype": torch.float32, "device": cell.device}
        x, y = (torch.arange(first, n * stride, stride, **like) for n in (width, height))
        left, top, right, bottom = cell.unbind(dim=1)
        x, y = x[None, :, None], y[:, None, None]
        return torch.stack(torch.broadcast_tensors(x + left, y + top, x + right, y + bottom), dim=-1).reshape(-1, 4)


def _rows(values: Sequence[Any], levels: int, what: str) -> list[Sequence[float]]:
    """One list of numbers for each level, from that or from a list that serves all."""
    assert len(values) > 0, f"no {what} of anchors are given"
    rows = list(values) if isinstance(values[0], Sequence) else [values]
    assert len(rows) in (1, levels), f"{len(rows)} lists of {what} for {levels} levels: expected one, or one for each"
    return rows * levels if len(rows) == 1 else rows


def build_anchor_generator(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> nn.Module:
    """Build what ``MODEL.ANCHOR_GENERATOR.NAME`` says, for levels of these shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
