"""The head of FCOS: class logits, distances to the sides, and a quality that shares a tower with one of them.

Paper: FCOS, arXiv:1904.01355 and arXiv:2006.09214. State-dict names follow AdelaiDet's head.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.tower import ConvTower, Scale, init_head_convs
from d2_ext.modeling.heads.base import Head, LevelMaps, common_channels, set_prior

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

BOX_ACTIVATIONS = ("relu", "exp")


class FCOSHead(Head):
    """Two towers over all levels and three predictors.

    Args:
        input_shape: channels (equal) and strides of the levels, finest first.
        num_classes: K.
        num_cls_convs: depth of the class tower.
        num_box_convs: depth of the box tower.
        num_share_convs: depth of the shared tower, which comes before both.
        norm: of the towers.
        use_scale: a learned factor per level before the activation of the distances.
        deform_last_conv: modulated deformable last convolution in the class and the box tower.
        box_activation: ``"relu"`` gives distances in strides, ``"exp"`` in px; the output is px in both cases.
        has_quality: whether there is a quality branch.
        quality_on: the tower it reads, ``"box"`` or ``"cls"``.
        prior_prob: initial score of every class.

    Raises:
        ConfigError: an unknown activation or tower, or levels of different width.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_cls_convs: int = 4,
        num_box_convs: int = 4,
        num_share_convs: int = 0,
        norm: str = "GN",
        use_scale: bool = True,
        deform_last_conv: bool = False,
        box_activation: str = "relu",
        has_quality: bool = True,
        quality_on: str = "box",
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        if box_activation not in BOX_ACTIVATIONS:
            raise ConfigError(f"BOX_ACTIVATION {box_activation!r}. {did_you_mean(box_activation, BOX_ACTIVATIONS)}")
        if quality_on not in ("box", "cls"):
            raise ConfigError(f"QUALITY_ON {quality_on!r}: the quality branch reads the tower 'box' or 'cls'.")
        channels = common_channels(input_shape)
        self.strides = [shape.stride for shape in input_shape]
        self.box_activation = box_activation
        self.quality_on = quality_on

        levels = len(input_shape)
        self.share_tower = ConvTower(channels, num_share_convs, num_levels=levels, norm=norm)
        self.cls_tower = ConvTower(channels, num_cls_convs, num_levels=levels, norm=norm, deform_last=deform_last_conv)
        self.bbox_tower = ConvTower(channels, num_box_convs, num_levels=levels, norm=norm, deform_last=deform_last_conv)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1) if has_quality else None
        self.scales = nn.ModuleList(Scale() for _ in range(levels)) if use_scale else None

        init_head_convs(self)
        set_prior(self.cls_logits, prior_prob)

    def maps(self, features: Sequence[Tensor]) -> LevelMaps:
        """Predict on every level.

        The boxes are float32: left, top, right, bottom, not negative, px of the padded input.

        Args:
            features: (N, C, Hl, Wl) each, finest first, as many as the head was built for.
        """
        logits, distances, quality = [], [], []
        for level, feature in enumerate(features):
            shared = self.share_tower(feature, level)
            cls_feature = self.cls_tower(shared, level)
            box_feature = self.bbox_tower(shared, level)
            logits.append(self.cls_logits(cls_feature))
            raw = self.bbox_pred(box_feature).float()  # half precision has no px in the hundreds
            raw = raw if self.scales is None else self.scales[level](raw)
            distances.append(raw.exp() if self.box_activation == "exp" else raw.relu() * self.strides[level])
            if self.ctrness is not None:
                quality.append(self.ctrness(box_feature if self.quality_on == "box" else cls_feature))
        return LevelMaps(logits, distances, quality)
