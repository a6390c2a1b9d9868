"""Warnings when a config normalizes images otherwise than weights were trained with; nothing else would tell."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputConvention:
    """Order of the channels, and mean and standard deviation in that order, in units of 0 to 255."""

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DETECTRON2_BGR = InputConvention("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
IMAGENET_RGB = InputConvention("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def warn_about_input(cfg: CfgNode | None, expected: InputConvention, source: str) -> None:
    """Log one warning for each of ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` that differs."""
    if cfg is None:
        return
    for key, value, wanted in (
        ("INPUT.FORMAT", cfg.INPUT.FORMAT, expected.order),
        ("MODEL.PIXEL_MEAN", list(cfg.MODEL.PIXEL_MEAN), list(expected.mean)),
        ("MODEL.PIXEL_STD", list(cfg.MODEL.PIXEL_STD), list(expected.std)),
    ):
        same = value == wanted
        if not isinstance(wanted, str):
            same = len(value) == len(wanted) and all(abs(a - b) < 0.01 for a, b in zip(value, wanted))
        if not same:
            logger.warning("%s is %s, but weights of %s were trained with %s: set it so.", key, value, source, wanted)
