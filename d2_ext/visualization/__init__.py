"""Images of what a detector sees: detections beside ground truth, and activation masks."""

from d2_ext.visualization.boxes import draw_boxes
from d2_ext.visualization.ground_truth import contact_sheet, draw_ground_truth
from d2_ext.visualization.images import draw_detections, write_images
from d2_ext.visualization.masks import draw_masks

__all__ = ["contact_sheet", "draw_boxes", "draw_detections", "draw_ground_truth", "draw_masks", "write_images"]
