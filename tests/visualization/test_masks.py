"""Mask overlays: layout, tint and captions."""

from __future__ import annotations

from d2_ext.visualization import draw_masks
from d2_ext.visualization.masks import CAPTION_HEIGHT

import numpy as np
import torch


def test_a_row_a_branch_and_a_column_a_level() -> None:
    image = np.full((40, 80, 3), 100, np.uint8)
    masks = {level: {branch: torch.zeros(5, 10).bool() for branch in ("cls", "reg")} for level in ("p3", "p4", "p5")}
    drawn = draw_masks(image, masks, tile_width=80)
    assert drawn.shape == (2 * (40 + CAPTION_HEIGHT + 2), 3 * (80 + 2), 3)


def test_active_cells_stay_bright_and_the_rest_is_dark() -> None:
    image = np.full((40, 80, 3), 100, np.uint8)
    mask = torch.zeros(1, 2).bool()
    mask[0, 1] = True  # the right half
    tile = draw_masks(image, {"p3": {"cls": mask}}, tile_width=80)[CAPTION_HEIGHT + 1 :]
    assert tile[20, 10].max() == 25  # a quarter of the image's brightness
    assert tile[20, 70].min() > 75
