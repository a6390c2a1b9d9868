"""The dense head of GFL: class scores that mean quality, and for each side a distribution over its distance.

Paper: Generalized Focal Loss, arXiv:2006.04388. Checked against: mmdet 2.24.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.layers.group_norm import AnySizeGroupNorm
from d2_ext.layers.tower import Scale, init_head_convs
from d2_ext.modeling.heads.base import Head, LevelMaps, common_channels, set_prior

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn

GN_GROUPS = 32  # as in Detectron2's "GN"


class GflHead(Head):
    """Dense towers of 3x3 convolution, norm and ReLU, shared by all levels, and two prediction layers.

    Args:
        input_shape: the L feature maps, all of the same number of channels.
        num_classes: K.
        num_convs: layers of each tower.
        norm: of the towers, as in ``detectron2.layers.get_norm``; convolutions have a bias only without one.
        prior_prob: initial score of every class.
        reg_max: largest distance to a side, in strides.

    Raises:
        ConfigError: for levels of different width.
    """

    pads_alone = True  # as the sparse version, so that both are compared on the same inputs

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
        reg_max: int = 16,
    ) -> None:
        super().__init__()
        channels = common_channels(input_shape)

        def tower() -> nn.Sequential:
            layers = []
            for _ in range(num_convs):
                norm_layer = AnySizeGroupNorm(GN_GROUPS, channels) if norm == "GN" else get_norm(norm, channels)
                activation = nn.ReLU(inplace=True)
                layers.append(
                    Conv2d(channels, channels, 3, padding=1, bias=not norm, norm=norm_layer, activation=activation)
                )
            return nn.Sequential(*layers)

        self.reg_max = reg_max
        self.cls_tower = tower()
        self.reg_tower = tower()
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distributions = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)
        init_head_convs(self)
        set_prior(self.cls_logits, prior_prob)

    def maps(self, features: Sequence[Tensor]) -> LevelMaps:
        """Predict for L maps (N, C, H, W).

        The boxes are 4*(reg_max + 1) logits a position: for left, top, right, bottom the bins of the distance.

        Args:
            features: the maps, finest first.
        """
        logits = [self.cls_logits(self.cls_tower(x)) for x in features]
        boxes = [scale(self.distributions(self.reg_tower(x))) for scale, x in zip(self.scales, features)]
        return LevelMaps(logits, boxes, [])
