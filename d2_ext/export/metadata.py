"""What an exported file says about itself, so that it can be used without its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import nn


def describe(
    cfg: CfgNode,
    model: nn.Module,
    *,
    class_names: Sequence[str],
    input_format: str,
    input_dtype: str,
    weights: str,
) -> dict[str, Any]:
    """Collect the metadata of a detector; the keys are ``runtimes.METADATA_KEYS``.

    Args:
        cfg: of the model.
        model: the detector.
        class_names: K names; too few are filled up with numbers.
        input_format: order of the channels of the images that the file takes.
        input_dtype: of these images, values from 0 to 255.
        weights: how they are stored: ``"float32"``, ``"float16"`` or ``"int8"``.
    """
    names = [*class_names, *(str(i) for i in range(len(class_names), model.num_classes))]
    return {
        "d2_ext": 1,  # version of these keys
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "class_names": names[: model.num_classes],
        "input_format": input_format,
        "input_dtype": input_dtype,
        "score_thresh": model.test_score_thresh,
        "nms_thresh": model.test_nms_thresh,
        "max_detections": model.max_detections_per_image,
        # Shorter and longest side that the model was tested at, px; 0: images keep their size.
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "weights": weights,
    }
