"""Pictures of what a detector sees: detections beside ground truth, and activation masks."""

from d2_ext.visualization.masks import draw_masks
from d2_ext.visualization.pictures import draw_detections, write_pictures

__all__ = ["draw_detections", "draw_masks", "write_pictures"]
