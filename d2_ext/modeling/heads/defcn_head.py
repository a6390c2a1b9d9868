"""The head of DeFCN: FCOS's without center-ness, with 3D max filtering as an option.

Paper: arXiv:2012.03544, section 3.3. State-dict names are those of the published files, so that these load as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.layers.max_filter import MaxFilter3d
from d2_ext.layers.tower import ConvTower, Scale, init_head_convs
from d2_ext.modeling.heads.base import Head, LevelMaps, common_channels, set_prior

from detectron2.layers import ShapeSpec
from torch import Tensor, nn


class DeFCNHead(Head):
    """Two towers over all levels, class and box predictors, and a filter branch on the box tower.

    Args:
        input_shape: channels (equal) and strides of the levels, finest first.
        num_classes: K.
        num_convs: depth of each tower.
        norm: of the towers.
        predicts_anchor_deltas: raw (dx, dy, dw, dh) instead of distances; such a head has no scales.
        filter_enabled: whether there is a filter branch.
        filter_max_pooling: False lets the filter branch read the box tower as it is.
        filter_kernel_size: see :class:`~d2_ext.layers.max_filter.MaxFilter3d`.
        filter_tau: see there.
        filter_norm: see there.
        prior_prob: initial probability of every class.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        predicts_anchor_deltas: bool = False,
        filter_enabled: bool = False,
        filter_max_pooling: bool = True,
        filter_kernel_size: int = 3,
        filter_tau: int = 2,
        filter_norm: str = "GN",
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        channels, levels = common_channels(input_shape), len(input_shape)
        self.strides = [shape.stride for shape in input_shape]
        self.cls_subnet = ConvTower(channels, num_convs, num_levels=levels, norm=norm)
        self.bbox_subnet = ConvTower(channels, num_convs, num_levels=levels, norm=norm)
        self.cls_score = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.max3d, self.filter = None, None
        if filter_enabled and filter_max_pooling:
            self.max3d = MaxFilter3d(channels, kernel_size=filter_kernel_size, tau=filter_tau, norm=filter_norm)
        if filter_enabled:
            self.filter = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = None if predicts_anchor_deltas else nn.ModuleList(Scale() for _ in range(levels))

        init_head_convs(self)
        set_prior(self.cls_score, prior_prob)

    def maps(self, features: Sequence[Tensor]) -> LevelMaps:
        """Predict on every level.

        The boxes are float32: left, top, right, bottom in px, or (dx, dy, dw, dh) of an anchor head; the quality is the
        filter, to be multiplied as a probability.

        Args:
            features: (N, C, Hl, Wl) each, finest first, as many as the head was built for.
        """
        logits, boxes, box_features = [], [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature, level)))
            box_features.append(self.bbox_subnet(feature, level))
            raw = self.bbox_pred(box_features[-1]).float()  # half precision has no px in the hundreds
            if self.scales is not None:
                raw = self.scales[level](raw).relu() * self.strides[level]
            boxes.append(raw)
        filtered = box_features if self.max3d is None else self.max3d(box_features)
        return LevelMaps(logits, boxes, [] if self.filter is None else [self.filter(x) for x in filtered])
