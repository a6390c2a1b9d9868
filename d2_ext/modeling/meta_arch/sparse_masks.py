"""What detectors with CEASC's sparse towers share: their masks for a user, the losses on them, and their log.

Paper: CEASC (arXiv:2303.14488). Letters: N images, L levels, A anchors a position, B branches ("cls", "reg").
"""

from __future__ import annotations

from typing import Any

from d2_ext.layers.sparse.linear import to_channels_last
from d2_ext.modeling.heads.ceasc_head import CeascPredictions
from d2_ext.modeling.heads.gfl_head import GflCeascPredictions
from d2_ext.modeling.losses.sparsity import RATIO_TARGETS
from d2_ext.modeling.meta_arch.anchor_rows import AnchorRowDetector
from d2_ext.modeling.meta_arch.image_groups import LevelMasks, activation_masks
from d2_ext.modeling.meta_arch.mask_ratio import SparsityLosses
from d2_ext.modeling.meta_arch.point_detector import check_choice

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor


class SparseMaskDetector(AnchorRowDetector):
    """A detector whose head is a ``CeascHead``.

    In training it logs the active shares with their targets under ``mask_ratio/``. Subclasses call
    :meth:`set_sparsity` in their constructor. Everything is computed in channels-last order, in which the rows of the
    sparse head are views of the feature maps.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Train or detect; see ``AnchorRowDetector``."""
        base = self.head.cls_tower.bases["logits"]
        self.head.all_boxes = self.detects_at(base)
        return super().forward(batched_inputs)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise and pad the images."""
        images = super().preprocess_image(batched_inputs)
        return ImageList(images.tensor.contiguous(memory_format=torch.channels_last), images.image_sizes)

    def set_sparsity(self, *, norm_loss_weight: float, ratio_loss_weight: float, ratio_target: str) -> None:
        """Keep the weights of the two losses, and lay the network out for speed.

        Args:
            norm_loss_weight: alpha, weight of the norm loss.
            ratio_loss_weight: beta, weight of the mask ratio loss.
            ratio_target: see ``positive_ratios``.

        Raises:
            ConfigError: for an unknown target.
        """
        check_choice("MODEL.CEASC.RATIO_TARGET", ratio_target, RATIO_TARGETS)
        self.norm_loss_weight = norm_loss_weight
        self.ratio_loss_weight = ratio_loss_weight
        self.ratio_target = ratio_target
        to_channels_last(self)

    def activation_masks(self, batched_inputs: list[dict[str, Any]]) -> list[LevelMasks]:
        """Masks of inference; see :func:`~d2_ext.modeling.meta_arch.image_groups.activation_masks`."""
        return activation_masks(self, batched_inputs)

    def sparsity_losses(
        self, predictions: CeascPredictions | GflCeascPredictions, positive: Tensor
    ) -> dict[str, Tensor]:
        """Weighted norm loss and mask ratio loss; logs the ratios.

        Args:
            predictions: of training.
            positive: bool (N, R), which anchors are labelled positive; those of a level stand together, row-major,
                and those of a position are neighbours.

        Returns:
            ``loss_norm`` and ``loss_ratio``.
        """
        cells = [h * w for _, h, w in predictions.logits.layout.shapes]
        anchors = positive.shape[1] // sum(cells)
        per_level = [p.unflatten(1, (-1, anchors)) for p in positive.split([c * anchors for c in cells], dim=1)]
        weigh = SparsityLosses(self.norm_loss_weight, self.ratio_loss_weight, self.ratio_target)
        return weigh(predictions.masks, predictions.norm_loss, per_level, self.head_in_features)
