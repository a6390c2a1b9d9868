"""ResNet (arXiv:1512.03385) of depths 18 to 152, with groups, dilation and deformable convolutions.

State-dict keys and the order of creation are Detectron2's, so its checkpoints fit and a seed gives its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, ShapeSpec, get_norm
from detectron2.layers._weight_init import msra_fill
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

Norm = str | Callable[[int], nn.Module]

BLOCKS_PER_STAGE = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}

ResNetBlockBase = CNNBlockBase  # an older name


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, *, dilation: int = 1, **kw: Any) -> Conv2d:
    """Convolution without bias that keeps the size (at stride 1), with its norm."""
    kw |= {"padding": dilation * (kernel_size // 2), "dilation": dilation, "norm": get_norm(norm, out_channels)}
    return Conv2d(in_channels, out_channels, kernel_size, bias=False, **kw)


class _ResidualBlock(CNNBlockBase):
    """``relu(residual(x) + shortcut(x))``; the shortcut is a 1x1 convolution where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = (
            _conv(in_channels, out_channels, 1, norm, stride=stride) if in_channels != out_channels else None
        )

    def _init_weights(self, *convs: nn.Module) -> None:
        for conv in (*convs, self.shortcut):
            if conv is not None:
                msra_fill(conv)

    def residual(self, x: Tensor) -> Tensor:
        """What the block adds to its input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions: the block of ResNet-18 and -34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        self._init_weights(self.conv1, self.conv2)

    def residual(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions: the block of ResNet-50, -101 and -152."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """Make the layers.

        Args:
            in_channels, out_channels: of the block.
            bottleneck_channels: of the 3x3 convolution.
            stride: of the block.
            num_groups: of the 3x3 convolution.
            norm: after each convolution; see ``get_norm``.
            stride_in_1x1: let the first convolution have the stride (MSRA's weights), not the 3x3 (torchvision's).
            dilation: of the 3x3 convolution.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(width, width, 3, norm, stride=stride_3x3, groups=num_groups, dilation=dilation)
        self.conv3 = _conv(width, out_channels, 1, norm)
        self._init_weights(self.conv1, self.conv2, self.conv3)

    def residual(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))


class DeformBottleneckBlock(_ResidualBlock):
    """``BottleneckBlock`` with a deformable 3x3 convolution, whose offsets start at 0."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        """Make the layers.

        Args:
            in_channels, out_channels, bottleneck_channels, stride, num_groups, norm, stride_in_1x1, dilation: as for
                ``BottleneckBlock``.
            deform_modulated: also weight the kernel points.
            deform_num_groups: groups of channels with equal offsets.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        self.deform_modulated = deform_modulated
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        geometry = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        per_point = 3 if deform_modulated else 2
        self.conv1 = _conv(in_channels, width, 1, norm, stride=stride_1x1)
        self.conv2_offset = Conv2d(width, per_point * 9 * deform_num_groups, **geometry)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            width,
            width,
            **geometry,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            bias=False,
            norm=get_norm(norm, width),
        )
        self.conv3 = _conv(width, out_channels, 1, norm)
        self._init_weights(self.conv1, self.conv2, self.conv3)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def residual(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.relu_(self.conv1(x))
        if self.deform_modulated:
            offset_1, offset_2, mask = self.conv2_offset(x).chunk(3, dim=1)
            x = self.conv2(x, torch.cat((offset_1, offset_2), dim=1), mask.sigmoid())
        else:
            x = self.conv2(x, self.conv2_offset(x))
        return self.conv3(F.relu_(x))


class BasicStem(CNNBlockBase):
    """7x7 convolution of stride 2, ReLU and 3x3 max pooling of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and up to four stages, called res2 to res5, of blocks."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """Put the parts together.

        Args:
            stem: first layers; says its stride and channels.
            stages: blocks of each stage. Stages after the last of ``out_features`` are left out.
            num_classes: add average pooling and a linear layer, ``linear``, of so many classes.
            out_features: among ``stem``, ``res2`` to ``res5`` and ``linear``; default: the last layer.
            freeze_at: see ``freeze``.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        self.stage_names: tuple[str, ...] = ()
        self.stages: list[nn.Sequential] = []
        if out_features is not None:
            # Unused layers would cost memory, and have no gradient for DistributedDataParallel to wait for.
            stages = stages[: max({"res2": 1, "res3": 2, "res4": 3, "res5": 4}.get(f, 0) for f in out_features)]
        name = "stem"
        for i, blocks in enumerate(stages, start=2):
            name = self._add_stage(f"res{i}", blocks, previous=name)
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(self._out_feature_channels[name], num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)  # arXiv:1706.02677, Sec. 5.1
            name = "linear"
        self._out_features = [name] if out_features is None else out_features
        assert self._out_features, "out_features must not be empty."
        children = [child for child, _ in self.named_children()]
        for feature in self._out_features:
            assert feature in children, f"out_features: no layer '{feature}' among {', '.join(children)}."
        self.freeze(freeze_at)

    def _add_stage(self, name: str, blocks: Sequence[CNNBlockBase], previous: str) -> str:
        assert len(blocks) > 0, f"Stage {name} has no blocks."
        for block in blocks:
            assert isinstance(block, CNNBlockBase), f"Stage {name}: {type(block).__name__} is not a CNNBlockBase."
        stage = nn.Sequential(*blocks)
        self.add_module(name, stage)
        self.stages.append(stage)
        self.stage_names += (name,)
        stride = math.prod(block.stride for block in blocks)
        self._out_feature_strides[name] = self._out_feature_strides[previous] * stride
        self._out_feature_channels[name] = blocks[-1].out_channels
        return name

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map pictures (N, C, H, W) to the maps named in ``out_features``."""
        assert x.dim() == 4, f"A ResNet takes pictures (N, C, H, W), not {tuple(x.shape)}."
        outputs = {}
        for name, layer in zip(("stem", *self.stage_names), (self.stem, *self.stages)):
            x = layer(x)
            if name in self._out_features:
                outputs[name] = x
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(start_dim=1))
        return outputs

    def freeze(self, freeze_at: int = 0) -> Self:
        """Take the first stages out of training: 1 is the stem, 2 also res2, and so on."""
        parts = [[self.stem], *(stage.children() for stage in self.stages)]
        for block in itertools.chain.from_iterable(parts[: max(freeze_at, 0)]):
            block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Make the blocks of a stage.

        Args:
            block_class: their class.
            num_blocks: their number.
            in_channels: of the first block.
            out_channels: of all blocks.
            kwargs: further arguments of the class; an argument ``name_per_block`` is a list with one ``name`` a block.
        """
        suffix = "_per_block"
        for key, values in kwargs.items():
            if key.endswith(suffix):
                assert len(values) == num_blocks, f"'{key}' has {len(values)} values for {num_blocks} blocks."
                single = key.removesuffix(suffix)
                assert single not in kwargs, f"make_stage got both '{single}' and '{key}'."
        blocks = []
        for i in range(num_blocks):
            own = {k.removesuffix(suffix): v[i] if k.endswith(suffix) else v for k, v in kwargs.items()}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a ResNet.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: default: ``BasicBlock`` below depth 50, else ``BottleneckBlock``.
            kwargs: further arguments of ``make_stage``, without strides and channels.
        """
        is_small = depth < 50
        channels = [64, 64, 128, 256, 512] if is_small else [64, 256, 512, 1024, 2048]
        stages = []
        for i, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
            own = dict(kwargs) if is_small else {**kwargs, "bottleneck_channels": channels[i + 1] // 4}
            blocks = ResNet.make_stage(
                block_class or (BasicBlock if is_small else BottleneckBlock),
                num_blocks,
                stride_per_block=_strides(1 if i == 0 else 2, num_blocks),
                in_channels=channels[i],
                out_channels=channels[i + 1],
                **own,
            )
            stages.append(blocks)
        return stages


def make_stage(*args: Any, **kwargs: Any) -> list[CNNBlockBase]:
    """Another name of ``ResNet.make_stage``."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet from ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.BACKBONE.FREEZE_AT``."""
    keys = cfg.MODEL.RESNETS
    assert keys.RES5_DILATION in (1, 2), f"MODEL.RESNETS.RES5_DILATION is 1 or 2, not {keys.RES5_DILATION}."
    is_small = keys.DEPTH in (18, 34)
    if is_small:
        _check_small(keys)
    stem = BasicStem(in_channels=input_shape.channels, out_channels=keys.STEM_OUT_CHANNELS, norm=keys.NORM)
    in_channels, stages = keys.STEM_OUT_CHANNELS, []
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[keys.DEPTH]):
        dilation = keys.RES5_DILATION if i == 3 else 1
        first_stride = 1 if i == 0 or dilation == 2 else 2  # dilation takes the place of the stride
        out_channels = keys.RES2_OUT_CHANNELS * 2**i
        block_class, arguments = (BasicBlock, {}) if is_small else _bottleneck(keys, i, dilation)
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                stride_per_block=_strides(first_stride, num_blocks),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=keys.NORM,
                **arguments,
            )
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=keys.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _strides(first: int, num_blocks: int) -> list[int]:
    return [first] + [1] * (num_blocks - 1)


def _check_small(keys: CfgNode) -> None:
    assert keys.RES2_OUT_CHANNELS == 64, "Depths 18 and 34 need MODEL.RESNETS.RES2_OUT_CHANNELS 64."
    assert not any(keys.DEFORM_ON_PER_STAGE), "MODEL.RESNETS.DEFORM_ON_PER_STAGE needs a depth of 50 or more."
    assert keys.RES5_DILATION == 1, "MODEL.RESNETS.RES5_DILATION needs a depth of 50 or more."
    assert keys.NUM_GROUPS == 1, "MODEL.RESNETS.NUM_GROUPS needs a depth of 50 or more."


def _bottleneck(keys: CfgNode, stage: int, dilation: int) -> tuple[type[CNNBlockBase], dict[str, Any]]:
    """Class and arguments of the blocks of stage 0 (res2) to 3 (res5)."""
    arguments = {
        "bottleneck_channels": keys.NUM_GROUPS * keys.WIDTH_PER_GROUP * 2**stage,
        "num_groups": keys.NUM_GROUPS,
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "dilation": dilation,
    }
    if not keys.DEFORM_ON_PER_STAGE[stage]:
        return BottleneckBlock, arguments
    arguments |= {"deform_modulated": keys.DEFORM_MODULATED, "deform_num_groups": keys.DEFORM_NUM_GROUPS}
    return DeformBottleneckBlock, arguments
