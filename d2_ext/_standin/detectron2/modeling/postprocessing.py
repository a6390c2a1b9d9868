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
    scale_x, scale_y = output_width / results.image_size[1], output_height / results.image_size[0]
    results = Instances((output_height, output_width), **results.get_fields())
    name = next((n for n in ("pred_boxes", "proposal_boxes") if results.has(n)), None)
    assert name is not None, f"Detections need pred_boxes or proposal_boxes, not only {list(results.get_fields())}."
    boxes = results.get(name)
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    if results.has("pred_keypoints"):
        results.pred_keypoints[:, :, 0] *= scale_x
        results.pred_keypoints[:, :, 1] *= scale_y
    return results
