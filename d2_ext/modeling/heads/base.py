"""What every head of a dense detector gives, and what detectors may ask of it.

Letters: N images, L levels, A anchors a position, K classes, R positions of all levels and images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.rows import RowValues

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn


@dataclass(frozen=True)
class SparseOutput:
    """What sparse towers give beside the predictions.

    Attributes:
        masks: by branch ("cls", "reg") those of the L levels, with the logits they were made from.
        norm_loss: mean over levels, branches and layers, unweighted; None in inference, and without CE-GN.
    """

    masks: dict[str, list[Mask]]
    norm_loss: Tensor | None


@dataclass(frozen=True)
class HeadOutput:
    """Predictions of a head, dense or sparse, in training and in inference.

    Attributes:
        logits: A*K class logits a position, anchor-major.
        boxes: A*V numbers a position that the detector turns into boxes: distances in px, deltas, or distributions.
        quality: one logit a position that multiplies the class score as a probability; None for a head without one.
        sparsity: of a head with sparse towers; None for a dense head.
    """

    logits: RowValues
    boxes: RowValues
    quality: RowValues | None = None
    sparsity: SparseOutput | None = None


class LevelMaps(NamedTuple):
    """Predictions at all positions, level by level, finest first.

    Attributes:
        logits: (N, A*K, Hl, Wl) each.
        boxes: (N, A*V, Hl, Wl) each.
        quality: (N, 1, Hl, Wl) each; empty for a head without quality.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    quality: list[Tensor]


class Head(nn.Module):
    """A head over the levels of a pyramid; ``forward`` maps L features (N, C, Hl, Wl) to a :class:`HeadOutput`.

    Attributes:
        pads_alone: whether the predictions depend on an image's padding, so that inference must not choose the padding
            by other images.
        memory_format: order of memory in which the head is fastest.
    """

    pads_alone = False
    memory_format = torch.contiguous_format

    def maps(self, features: Sequence[Tensor]) -> LevelMaps:
        """Predict at all positions of L maps (N, C, Hl, Wl), finest first, in operators that a graph can hold."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Predict at all positions of L maps (N, C, Hl, Wl), finest first."""
        maps = self.maps(features)
        quality = RowValues.of_maps(maps.quality) if maps.quality else None
        return HeadOutput(RowValues.of_maps(maps.logits), RowValues.of_maps(maps.boxes), quality)

    def predict(self, features: Sequence[Tensor], score_thresh: float) -> HeadOutput:
        """Predict what inference looks at.

        Args:
            features: see :meth:`forward`.
            score_thresh: positions whose class score is not larger are never looked at.
        """
        return self(features)


def common_channels(input_shape: Sequence[ShapeSpec]) -> int:
    """Return the width that all levels share.

    Raises:
        ConfigError: they differ.
    """
    channels = {shape.channels for shape in input_shape}
    if len(channels) != 1:
        raise ConfigError(f"The levels of a shared head must have equal channels, not {sorted(channels)}: use an FPN.")
    return channels.pop()


def set_prior(conv: nn.Conv2d, probability: float) -> None:
    """Set the biases of class logits so that every class starts with this probability."""
    nn.init.constant_(conv.bias, -math.log((1 - probability) / probability))
