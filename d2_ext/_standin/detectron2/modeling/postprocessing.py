"""From the picture that a detector saw to the picture that the user gave."""

from __future__ import annotations

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections to another picture size, clip them to it, and drop those without area.

    Args:
        results: detections with ``pred_boxes`` or ``proposal_boxes``, XYXY in px of ``results.image_size``. The boxes
            are scaled and clipped in place.
        output_height, output_width: size in px of the picture to scale to.
        mask_threshold: for masks, which the stand-in has not.

    Raises:
        NotImplementedError: if there are ``pred_masks``.
    """
    if results.has("pred_masks"):
        raise NotImplementedError("Masks are not in the stand-in for Detectron2; they need Detectron2 itself.")
    fields, (height, width) = results.get_fields(), results.image_size
    boxes = fields.get("pred_boxes", fields.get("proposal_boxes"))
    assert boxes is not None, f"Detections need pred_boxes or proposal_boxes, not only {[*fields]}."
    factors = (output_width / width, output_height / height)  # of x and of y
    boxes.scale(*factors)
    boxes.clip((output_height, output_width))
    scaled = Instances((output_height, output_width), **fields)[boxes.nonempty()]
    if scaled.has("pred_keypoints"):
        for axis, factor in enumerate(factors):
            scaled.pred_keypoints[..., axis].mul_(factor)
    return scaled
