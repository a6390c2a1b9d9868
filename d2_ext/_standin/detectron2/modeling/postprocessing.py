"""From the frame of the network's input to the frame that the user asked for."""

from __future__ import annotations

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale ``pred_boxes`` (or ``proposal_boxes``) to another frame, clip them to it, and drop those outside.

    The boxes themselves, px of ``results.image_size``, are scaled and clipped. AssertionError without boxes;
    NotImplementedError for masks and keypoints.
    """
    if foreign := {"pred_masks", "pred_keypoints"} & results.get_fields().keys():
        raise NotImplementedError(f"{foreign} need Detectron2 itself: the stand-in's detectors have boxes only")
    scaled = Instances((output_height, output_width), **results.get_fields())
    kind = next((name for name in ("pred_boxes", "proposal_boxes") if scaled.has(name)), None)
    assert kind is not None, f"nothing to scale: expected pred_boxes, got the fields {sorted(scaled.get_fields())}"
    height, width = results.image_size
    factors = output_width / width, output_height / height
    boxes = scaled.get(kind)
    boxes.scale(*factors)
    boxes.clip(scaled.image_size)
    return scaled[boxes.nonempty()]
