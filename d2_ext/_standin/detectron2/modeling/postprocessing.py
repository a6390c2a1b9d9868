"""From the frame of the network's input to the frame that the user asked for."""

from __future__ import annotations

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections to another frame, clip them to it, and drop those that lie outside.

    Args:
        results: ``pred_boxes`` (or ``proposal_boxes``) and maybe ``pred_keypoints``, in px of ``results.image_size``.
            These boxes themselves are scaled and clipped.
        output_height, output_width: size of the frame asked for, px.
        mask_threshold: of masks, which are refused.

    Raises:
        AssertionError: if there are no boxes.
        NotImplementedError: if there are masks.
    """
    if results.has("pred_masks"):
        raise NotImplementedError("pred_masks need Detectron2 itself: the stand-in's detectors have boxes only")
    scaled = Instances((output_height, output_width), **results.get_fields())
    kind = next((name for name in ("pred_boxes", "proposal_boxes") if scaled.has(name)), None)
    assert kind is not None, f"nothing to scale: expected pred_boxes, got the fields {sorted(scaled.get_fields())}"
    height, width = results.image_size
    factors = output_width / width, output_height / height
    boxes = scaled.get(kind)
    boxes.scale(*factors)
    boxes.clip(scaled.image_size)
    kept = scaled[boxes.nonempty()]
    if kept.has("pred_keypoints"):
        for axis, factor in enumerate(factors):
            kept.pred_keypoints[:, :, axis] *= factor
    return kept
