"""What an exported file says about itself, so that it can be used without its config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from d2_ext.errors import ExportError

from detectron2.config import CfgNode
from torch import nn

INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "classes", "image")
METADATA_FILE = "d2_ext.json"  # inside a .pt2 archive
METADATA_NODE = "d2_ext"  # of an OpenVINO model's runtime info
MAX_CHARACTERS = 1_000_000  # of the json of one value; the names of a thousand classes have some ten thousand


class Key(NamedTuple):
    """What the value of a key must be, as a condition and in words."""

    holds: Callable[[Any], bool]
    expected: str


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


_PIXELS = Key(lambda v: _is_whole(v, 0, 100_000), "a whole number from 0 to 100000")
# Every key that a file has.
METADATA_KEYS: dict[str, Key] = {
    "d2_ext": Key(lambda v: _is_whole(v, 1, 1), "1, the version of these keys that this program knows"),
    "meta_architecture": Key(lambda v: isinstance(v, str), "a name"),
    "class_names": Key(
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(name, str) for name in v),
        "a list of at least 1 name",
    ),
    "input_format": Key(lambda v: v in ("BGR", "RGB"), "'BGR' or 'RGB'"),
    "input_dtype": Key(lambda v: v in ("uint8", "float32"), "'uint8' or 'float32'"),
    "score_thresh": Key(_is_share, "a number from 0 to 1"),
    "nms_thresh": Key(lambda v: v is None or _is_share(v), "a number from 0 to 1, or null"),
    "max_detections": Key(lambda v: _is_whole(v, -1, 10**6), "a whole number from -1 to 1000000"),
    "min_size": _PIXELS,
    "max_size": _PIXELS,
    "weights": Key(lambda v: v in ("float32", "float16", "int8"), "'float32', 'float16' or 'int8'"),
}


def describe(
    cfg: CfgNode,
    model: nn.Module,
    *,
    class_names: Sequence[str],
    input_format: str,
    input_dtype: str,
    weights: str,
) -> dict[str, Any]:
    """Collect the metadata of a detector; the keys are ``METADATA_KEYS``.

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


def parse_metadata(texts: Mapping[str, str], source: str) -> dict[str, Any]:
    """The values of the metadata that a file holds; other keys are passed over.

    Args:
        texts: json by key.
        source: the file, as messages name it.

    Raises:
        ExportError: a key is missing, or its value is no json or not what is expected under it.
    """
    if "class_names" not in texts:
        raise ExportError(f"{source} holds no metadata of d2_ext. Export it with tools/export.py.")
    values = {}
    for key, rule in METADATA_KEYS.items():
        text = texts.get(key, "")
        try:
            values[key] = json.loads(text[: MAX_CHARACTERS + 1])
            holds = len(text) <= MAX_CHARACTERS and rule.holds(values[key])
        except (ValueError, RecursionError):
            holds = False
        if not holds:
            found = f"is {text[:80]!r}" if key in texts else "is missing"
            raise ExportError(f"{source}: its metadata {key} {found}; expected {rule.expected}. Export it anew.")
    return values
