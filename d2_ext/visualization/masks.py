"""Images of the activation masks of a sparse head."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

CAPTION_HEIGHT = 18
ACTIVE_COLOR_BGR = (60, 220, 255)


def draw_masks(
    image: np.ndarray, masks: Mapping[str, Mapping[str, torch.Tensor]], *, tile_width: int = 320
) -> np.ndarray:
    """Draw where each branch of each level is active, over the image: a row a branch, a column a level.

    Args:
        image: (H, W, 3) uint8, BGR.
        masks: level name -> branch name -> bool (h, w), covering the whole image; see
            ``RetinaNetCEASC.activation_masks``.
        tile_width: width in px of one tile; the height follows the image's.

    Returns:
        uint8 BGR. Active cells keep the image's brightness and get a tint; the rest is dark. Each tile's caption says
        level, branch and the active fraction.
    """
    height, width = image.shape[:2]
    size = (tile_width, max(1, round(height * tile_width / width)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    tinted = cv2.addWeighted(small, 0.75, np.full_like(small, ACTIVE_COLOR_BGR), 0.25, 0)
    rows = []
    for branch in next(iter(masks.values())):
        tiles = []
        for level, branches in masks.items():
            mask = branches[branch]
            active = cv2.resize(mask.cpu().numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            shown = np.where(active[..., None], tinted, small // 4)
            caption = np.zeros((CAPTION_HEIGHT, tile_width, 3), np.uint8)
            text = f"{level} {branch}  {mask.float().mean().item():.1%}"
            place = (4, CAPTION_HEIGHT - 5)
            cv2.putText(caption, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
            tile = np.vstack([caption, shown.astype(np.uint8)])
            tiles.append(cv2.copyMakeBorder(tile, 1, 1, 1, 1, cv2.BORDER_CONSTANT))
        rows.append(np.hstack(tiles))
    return np.vstack(rows)
