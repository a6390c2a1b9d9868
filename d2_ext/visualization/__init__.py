"""Pictures of what a detector sees: detections beside ground truth, and activation masks."""

from d2_ext.visualization.boxes import draw_boxes
from d2_ext.visualization.masks import draw_masks
from d2_ext.visualization.pictures import draw_detections, write_pictures

__all__ = ["draw_boxes", "draw_detections", "draw_masks", "write_pictures"]
