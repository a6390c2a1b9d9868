"""Heads on CEASC's sparse towers: only the positions that a mask selects are computed in inference.

Paper: CEASC (arXiv:2303.14488) for the towers; RetinaNet, GFL, FCOS and DeFCN for what is predicted.
Checked against: the authors' released code at commit 2abfd1a (RetinaNet and GFL).
Differs for FCOS and DeFCN, which the paper does not have: an inactive position of the box tower predicts a square of
``BOX_BASE`` strides to each side, as RetinaNet's predicts its anchor.

Letters: N images, L levels, A anchors a position, K classes, n active positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from d2_ext.layers.sparse.conv import convolve_to_few
from d2_ext.layers.sparse.gumbel import Mask, draw_uniform_pair, hard_mask
from d2_ext.layers.sparse.inference import moments_of
from d2_ext.layers.sparse.rows import RowValues, constant
from d2_ext.layers.sparse.tower import ContextSparseTower, SparseTowerConfig
from d2_ext.layers.tower import Scale
from d2_ext.modeling.heads.base import (
    Head,
    HeadOutput,
    LevelMaps,
    SparseOutput,
    common_channels,
    set_prior,
)

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

BRANCHES = ("cls", "reg")
BOX_BASE = 2.0  # strides to each side: with 4 strides a side, RetinaNet's smallest anchor
MaskNoise = Mapping[str, Sequence[tuple[Tensor, Tensor]]]
# Computes a sparse tower from its maps (N, C, Hl, Wl) and masks (N, 1, Hl, Wl): by name L maps (N, C', Hl, Wl).
TowerPass = Callable[[ContextSparseTower, Sequence[Tensor], Sequence[Tensor]], dict[str, list[Tensor]]]


def dense_maps(tower: ContextSparseTower, maps: Sequence[Tensor], masks: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Predictions of a sparse tower by its definition: by name L maps (N, C', Hl, Wl).

    Args:
        tower: its weights.
        maps: (N, C, Hl, Wl) each.
        masks: bool (N, 1, Hl, Wl) each.
    """
    levels = [tower.forward_dense([x], [Mask(mask.float())]).predictions for x, mask in zip(maps, masks)]
    return {name: [level[name].maps()[0] for level in levels] for name in tower.predictors}


class SparseHead(Head):
    """A class and a box tower, each with its own mask.

    Subclasses say what the box tower predicts, and finish these numbers in :meth:`finish_boxes`.

    Args:
        input_shape: channels (equal) and strides of the L levels, finest first.
        num_classes: K.
        num_anchors: A.
        box_outputs: channels of the prediction layers of the box tower by name, the boxes first, then perhaps
            ``"quality"``, which is 0 at inactive positions.
        box_base: value of the box numbers at inactive positions.
        num_convs: masked layers of each tower.
        prior_prob: initial score of every class at active positions.
        cls_base: class logit at inactive positions.
        tower: what both towers share.

    Raises:
        ConfigError: for values that cannot work.
    """

    # In channels-last order the rows of the towers are views of the feature maps; CE-GN takes its statistics from the
    # padded image.
    memory_format = torch.channels_last
    pads_alone = True

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int = 1,
        box_outputs: Mapping[str, int],
        box_base: float = 0.0,
        num_convs: int = 4,
        prior_prob: float = 0.01,
        cls_base: float = -8.0,
        tower: SparseTowerConfig | None = None,
    ) -> None:
        super().__init__()
        channels = common_channels(input_shape)
        self.strides = [shape.stride for shape in input_shape]
        self.box_output = next(iter(box_outputs))
        self.cls_tower = ContextSparseTower(
            channels=channels,
            num_layers=num_convs,
            outputs={"logits": num_anchors * num_classes},
            bases={"logits": cls_base},
            config=tower,
        )
        self.reg_tower = ContextSparseTower(
            channels=channels,
            num_layers=num_convs,
            outputs=box_outputs,
            bases={self.box_output: box_base},
            config=tower,
        )
        set_prior(self.cls_tower.predictors["logits"], prior_prob)
        # Masks that learn on features which are not made for them need a layer of their own; both branches share it.
        width = 0 if tower is None else tower.mask_channels
        self.mask_stem = nn.Conv2d(channels, width, 1) if width else None

    def towers(self) -> dict[str, ContextSparseTower]:
        """Both towers by branch."""
        return {"cls": self.cls_tower, "reg": self.reg_tower}

    def finish_boxes(self, raw: RowValues) -> RowValues:
        """Turn the numbers of the box tower into those that the detector reads."""
        return raw

    def finish_map(self, raw: Tensor, level: int) -> Tensor:
        """The same for the map (N, A*V, H, W) of one level."""
        return raw

    # Masks

    def masks(self, features: Sequence[Tensor], noise: MaskNoise | None = None) -> dict[str, list[Mask]]:
        """Masks of both branches for L maps (N, C, H, W).

        Args:
            features: the maps.
            noise: for training, by branch a pair of U[0, 1) tensors (N, 1, H, W) per level; drawn if None.
        """
        masks: dict[str, list[Mask]] = {branch: [] for branch in BRANCHES}
        if not self.training:
            for logits in self.mask_logits(features):
                for branch, own in zip(BRANCHES, logits.float().split(1, dim=1)):
                    masks[branch].append(Mask(hard_mask(own), own))
            return masks
        for level, x in enumerate(features):
            read = self._mask_features(x.detach() if self.cls_tower.open_in_training else x)
            for branch, tower in self.towers().items():
                # Level by level, cls before reg: the order of the released code, so that equal seeds give equal noise.
                uniform = noise[branch][level] if noise else draw_uniform_pair(x[:, :1])
                masks[branch].append(tower.mask(read, uniform))
        return masks

    def hard_masks(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Masks of inference, in whatever mode the head is: by branch L maps, bool (N, 1, H, W)."""
        masks = [hard_mask(logits).bool() for logits in self.mask_logits(features)]
        return {branch: [mask[:, i : i + 1] for mask in masks] for i, branch in enumerate(BRANCHES)}

    @torch.no_grad()
    def mask_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits of both branches, one map (N, 2, H, W) per level, each feature map read once."""
        convs = [tower.mask_conv for tower in self.towers().values()]
        return [convolve_to_few(self._mask_features(x), convs) for x in features]

    def _mask_features(self, x: Tensor) -> Tensor:
        """What the mask convolutions read of a map (N, C, H, W)."""
        return x if self.mask_stem is None else F.relu(self.mask_stem(x))

    # Predictions

    def forward(
        self, features: Sequence[Tensor], noise: MaskNoise | None = None, *, all_boxes: bool = True
    ) -> HeadOutput:
        """Predict for L maps (N, C, H, W): at all positions in training, at the active ones in inference.

        Args:
            features: the maps, finest first; in inference fastest in channels-last order.
            noise: of the masks (training only), see :meth:`masks`; drawn if None.
            all_boxes: False lets inference leave out the boxes where the class branch is inactive, and everything that
                only they depend on.
        """
        masks = self.masks(features, noise)
        moments = moments_of(features) if self.cls_tower.reads_moments and not self.training else None
        cls = self.cls_tower(features, masks["cls"], moments=moments)
        reg = self.reg_tower(features, masks["reg"], None if all_boxes else masks["cls"], moments)
        norm_losses = [x.norm_loss for x in (cls, reg) if x.norm_loss is not None]
        norm_loss = torch.stack(norm_losses).mean() if norm_losses else None
        return HeadOutput(
            cls.predictions["logits"],
            self.finish_boxes(reg.predictions[self.box_output]),
            reg.predictions.get("quality"),
            SparseOutput(masks, norm_loss),
        )

    def predict(self, features: Sequence[Tensor], score_thresh: float) -> HeadOutput:
        """Predict what inference looks at; the boxes of inactive positions only if their class score is high enough."""
        return self(features, all_boxes=self.base_counts(score_thresh))

    def base_counts(self, score_thresh: float) -> bool:
        """Whether the class score of inactive positions is above the threshold, so that their boxes are looked at."""
        return 1 / (1 + math.exp(-self.cls_tower.bases["logits"])) > score_thresh

    def maps(
        self, features: Sequence[Tensor], tower_pass: TowerPass = dense_maps, *, all_boxes: bool = True
    ) -> LevelMaps:
        """Predict at all positions by the masks of inference; see :meth:`Head.maps`.

        Args:
            features: the maps, finest first.
            tower_pass: computes the towers.
            all_boxes: see :meth:`forward`; False closes the mask of the boxes where no box that counts reads it.
        """
        masks = self.hard_masks(features)
        if not all_boxes:
            # A prediction reads as many positions to each side as there are layers before it.
            reach = 2 * len(self.reg_tower.layers) + 1
            for level, (active, box_mask) in enumerate(zip(masks["cls"], masks["reg"])):
                read = F.max_pool2d((active & box_mask).float(), reach, stride=1, padding=reach // 2)
                masks["reg"][level] = box_mask & (read > 0)
        cls = tower_pass(self.cls_tower, features, masks["cls"])
        reg = tower_pass(self.reg_tower, features, masks["reg"])
        boxes = [self.finish_map(raw, level) for level, raw in enumerate(reg[self.box_output])]
        return LevelMaps(cls["logits"], boxes, reg.get("quality", []))

    def per_row(self, rows: RowValues, numbers: Tensor) -> Tensor:
        """One number for each level (L,), as a column for the rows: (n, 1)."""
        return numbers[rows.layout.map_of(rows.index, rows.values.device)][:, None]


class CeascHead(SparseHead):
    """The head of RetinaNet-CEASC: four deltas for each anchor.

    Args:
        num_anchors: A, anchors a position.
        reg_base: box delta at inactive positions.
        sparse: the other arguments of :class:`SparseHead`.
    """

    def __init__(self, *, num_anchors: int, reg_base: float = 0.0, **sparse: Any) -> None:
        super().__init__(num_anchors=num_anchors, box_outputs={"deltas": num_anchors * 4}, box_base=reg_base, **sparse)


class GflCeascHead(SparseHead):
    """The head of GFL-CEASC: for each side a distribution over its distance.

    Inactive positions have the base 0 in all bins: a uniform distribution, that is a distance of reg_max / 2 strides to
    each side.

    Args:
        reg_max: largest distance to a side, in strides.
        sparse: the other arguments of :class:`SparseHead`.
    """

    def __init__(self, *, reg_max: int = 16, **sparse: Any) -> None:
        super().__init__(box_outputs={"distributions": 4 * (reg_max + 1)}, **sparse)
        self.reg_max = reg_max
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def finish_boxes(self, raw: RowValues) -> RowValues:
        """Multiply the rows of each level with its factor; their base is 0 and stays so."""
        factors = self.per_row(raw, torch.cat([scale.scale for scale in self.scales]))
        return RowValues(raw.values * factors, raw.index, raw.base, raw.layout)

    def finish_map(self, raw: Tensor, level: int) -> Tensor:
        """Multiply the map of one level with its factor."""
        return self.scales[level](raw)


class SparsePointHead(SparseHead):
    """The head of sparse FCOS and DeFCN: distances in px, and perhaps a quality or the filter of DeFCN.

    Args:
        has_quality: whether the box tower also predicts a quality.
        use_scale: a learned factor per level before the activation of the distances.
        sparse: the other arguments of :class:`SparseHead`.
    """

    box_activation = "relu"

    def __init__(self, *, has_quality: bool = False, use_scale: bool = True, **sparse: Any) -> None:
        outputs = {"boxes": 4, "quality": 1} if has_quality else {"boxes": 4}
        super().__init__(box_outputs=outputs, box_base=BOX_BASE, **sparse)
        self.scales = nn.ModuleList(Scale() for _ in self.strides) if use_scale else None

    def finish_boxes(self, raw: RowValues) -> RowValues:
        """Distances in px at all positions: the base differs from level to level."""
        rows = RowValues(raw.dense().float(), None, raw.base, raw.layout)
        values = rows.values
        if self.scales is not None:
            values = values * self.per_row(rows, torch.cat([scale.scale for scale in self.scales]))
        strides = self.per_row(rows, constant(self.strides, values.device))
        return RowValues(values.relu() * strides, None, 0.0, raw.layout)

    def finish_map(self, raw: Tensor, level: int) -> Tensor:
        """Distances in px of one level."""
        raw = raw.float() if self.scales is None else self.scales[level](raw.float())
        return raw.relu() * self.strides[level]
