"""How large an image becomes when a detector pads it."""

from __future__ import annotations

import math

from detectron2.modeling.backbone import Backbone


def padded_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Size (height, width) in px of one image after it is padded alone, as ``preprocess_image`` does it."""
    constraints = backbone.padding_constraints
    if constraints.get("square_size", 0) > 0:
        return constraints["square_size"], constraints["square_size"]
    step = max(constraints.get("size_divisibility", backbone.size_divisibility), 1)
    return math.ceil(height / step) * step, math.ceil(width / step) * step
