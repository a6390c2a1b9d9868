"""ResNets (arXiv:1512.03385), with FrozenBN, groups, dilation and deformable convolutions as the config says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from torch import Tensor, nn
from typing_extensions import Self

_Norm = str | Callable[[int], nn.Module]
_BLOCKS_PER_STAGE = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}

ResNetBlockBase = CNNBlockBase  # the older name


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: _Norm, **options: Any) -> Conv2d:
    """Convolution without bias that keeps the size at stride 1, then a norm."""
    padding = options.get("dilation", 1) * (kernel_size // 2)
    norm_layer = get_norm(norm, out_channels)
    return Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False, norm=norm_layer, **options)


def _draw_weights(*convs: nn.Module | None) -> None:
    """Draw weights as MSRA's ResNets did: normal, the variance 2 over the outputs of an input."""
    for conv in filter(None, convs):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class _ShortcutBlock(CNNBlockBase):
    """ReLU(residual(x) + shortcut(x)). The shortcut is x, or a 1x1 convolution of it where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: _Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        same = in_channels == out_channels
        self.shortcut = None if same else _conv(in_channels, out_channels, 1, norm, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, in_channels, H, W) into (N, out_channels, H / stride, W / stride)."""
        y = self.residual(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return y.relu_()

    def residual(self, x: Tensor) -> Tensor:
        """Give what is added to the shortcut."""
        raise NotImplementedError


class BasicBlock(_ShortcutBlock):
    """Two 3x3 convolutions, the first with the stride: the block of ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: _Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        _draw_weights(self.conv1, self.conv2, self.shortcut)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu_())


class BottleneckBlock(_ShortcutBlock):
    """1x1 convolution to fewer channels, a 3x3 one, and 1x1 to the output's: the block of ResNet-50 and larger.

    Args:
        bottleneck_channels, num_groups, dilation: of the 3x3 convolution.
        stride_in_1x1: whether the first 1x1 convolution has the stride (as MSRA's weights need), or the 3x3 one.
        middle: more arguments of ``add_middle``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: _Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        **middle: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        in_1x1, in_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=in_1x1)
        middle.update(stride=in_3x3, dilation=dilation, groups=num_groups)
        self.add_middle(bottleneck_channels, norm, **middle)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)
        _draw_weights(self.conv1, self.conv2, self.conv3, self.shortcut)

    def add_middle(self, channels: int, norm: _Norm, **options: Any) -> None:
        """Register ``conv2`` and what it needs."""
        self.conv2 = _conv(channels, channels, 3, norm, **options)

    def middle(self, x: Tensor) -> Tensor:
        """Run what ``add_middle`` registered."""
        return self.conv2(x)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.middle(self.conv1(x).relu_()).relu_())


class DeformBottleneckBlock(BottleneckBlock):
    """The same with a deformable 3x3 convolution (arXiv:1703.06211, 1811.11168).

    Args:
        deform_modulated: whether each sample also has a weight (version 2).
        deform_num_groups: groups of channels that have offsets of their own.
    """

    def add_middle(self, channels: int, norm: _Norm, *, groups: int, dilation: int, stride: int, **deform: Any) -> None:
        """Register ``conv2_offset``, which moves no sample at first, and ``conv2``."""
        modulated, parts = deform.pop("deform_modulated", False), deform.pop("deform_num_groups", 1)
        self._num_offsets = parts * 2 * 9  # y and x of 3x3 samples
        place = {"stride": stride, "padding": dilation, "dilation": dilation, **deform}
        self.conv2_offset = Conv2d(channels, self._num_offsets + (parts * 9 if modulated else 0), 3, **place)
        for zeros in self.conv2_offset.parameters():
            nn.init.zeros_(zeros)
        place |= {"groups": groups, "deformable_groups": parts, "bias": False, "norm": get_norm(norm, channels)}
        self.conv2 = (ModulatedDeformConv if modulated else DeformConv)(channels, channels, 3, **place)

    def middle(self, x: Tensor) -> Tensor:
        wanted = self.conv2_offset(x)
        offsets, weights = wanted[:, : self._num_offsets], wanted[:, self._num_offsets :]
        return self.conv2(x, offsets, weights.sigmoid()) if weights.shape[1] else self.conv2(x, offsets)


class BasicStem(CNNBlockBase):
    """7x7 convolution, ``norm`` as in ``detectron2.layers.get_norm``, and 3x3 max pooling; both with stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: _Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        _draw_weights(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (N, in_channels, H, W) into (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(self.conv1(x).relu_(), 3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of blocks, called ``stem``, ``res2``, ``res3`` and so on.

    Args:
        num_classes: of a classifier ``linear`` after the last stage; None for no classifier.
        out_features: parts whose outputs are wanted, by default the last one; stages after these are left out.
            AssertionError for an unknown name, ValueError for none.
        freeze_at: see :meth:`freeze`.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        parts = {"stem": [stem], **{f"res{number}": stage for number, stage in enumerate(stages, start=2)}}
        names = list(parts)
        if out_features is None:
            out_features = [names[-1] if num_classes is None else "linear"]
        elif not out_features:
            raise ValueError(f"out_features is empty: expected one or more of {names}")
        else:
            names = names[: 1 + max(names.index(name) if name in parts else 0 for name in out_features)]
        self._part_names, stride = names, 1
        self._out_feature_strides, self._out_feature_channels = {}, {}
        for name in names:
            blocks = parts[name]
            usable = blocks and all(isinstance(block, CNNBlockBase) for block in blocks)
            assert usable, f"{name} needs blocks, and those of class CNNBlockBase; it has {blocks}"
            self.add_module(name, stem if name == "stem" else nn.Sequential(*blocks))
            stride *= math.prod(block.stride for block in blocks)
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, blocks[-1].out_channels
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(self._out_feature_channels[names[-1]], num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
        known = [name for name, _ in self.named_children()]
        assert set(out_features) <= set(known), f"out_features {out_features}: this ResNet consists of {known}"
        self._out_features = out_features
        self.freeze(freeze_at)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """``res2`` and so on, as far as they are built."""
        return tuple(self._part_names[1:])

    @property
    def stages(self) -> list[nn.Module]:
        """The stages that are built, in order."""
        return [self.get_submodule(name) for name in self.stage_names]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Turn images (N, C, H, W) into the wanted outputs by name, in the order of the parts."""
        assert x.dim() == 4, f"expected images (N, C, H, W), got a tensor of shape {tuple(x.shape)}"
        return {name: y for name, y in self._outputs(x) if name in self._out_features}

    def _outputs(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name in self._part_names:
            x = self.get_submodule(name)(x)
            yield name, x
        if self.num_classes is not None:
            yield "linear", self.linear(self.avgpool(x).flatten(1))

    def freeze(self, freeze_at: int = 0) -> Self:
        """Freeze parameters and statistics of the first parts, 1 the stem, 2 also res2 and so on; gives itself."""
        for name in self._part_names[: max(freeze_at, 0)]:
            for block in [m for m in self.get_submodule(name).modules() if isinstance(m, CNNBlockBase)]:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Make the blocks of a stage; only the first one has ``in_channels``.

        ``kwargs`` are arguments for all blocks; or, as ``<argument>_per_block``, a list with one for each
        (AssertionError if it is of another length, or an argument is given in both ways).
        """
        shared = dict(kwargs)
        columns = {key: shared.pop(key) for key in kwargs if key.endswith("_per_block")}
        wrong = [key for key, values in columns.items() if len(values) != num_blocks]
        assert not wrong, f"{wrong}: expected {num_blocks} values each, one for every block"
        own = {key.removesuffix("_per_block"): values for key, values in columns.items()}
        assert not own.keys() & shared.keys(), f"{sorted(own.keys() & shared.keys())}: given for all and per block"
        widths = [in_channels, *[out_channels] * num_blocks]
        return [
            block_class(width, out_channels, **shared, **{key: values[index] for key, values in own.items()})
            for index, width in enumerate(widths[:num_blocks])
        ]

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of ResNet-18, 34, 50, 101 or 152; ``kwargs`` are arguments for all blocks."""
        usual, in_channels = (BasicBlock if depth < 50 else BottleneckBlock), 64
        stages = []
        for number, count in enumerate(_BLOCKS_PER_STAGE[depth]):
            own: dict[str, Any] = {"stride_per_block": _strides(count, number > 0), **kwargs}
            own["out_channels"] = (64 if depth < 50 else 256) << number
            if issubclass(block_class or usual, BottleneckBlock):
                own["bottleneck_channels"] = own["out_channels"] // 4
            stages.append(make_stage(block_class or usual, count, in_channels=in_channels, **own))
            in_channels = own["out_channels"]
        return stages


def make_stage(*args: Any, **kwargs: Any) -> list[CNNBlockBase]:
    """Do what :meth:`ResNet.make_stage` does, under an older name."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet from ``MODEL.RESNETS`` and ``MODEL.BACKBONE.FREEZE_AT``; asserts that its depth can be so."""
    keys = cfg.MODEL.RESNETS
    assert keys.RES5_DILATION in (1, 2), f"MODEL.RESNETS.RES5_DILATION {keys.RES5_DILATION}: expected 1 or 2"
    stem = BasicStem(input_shape.channels, keys.STEM_OUT_CHANNELS, keys.NORM)
    make = _basic_stage if keys.DEPTH < 50 else _bottleneck_stage
    stages, in_channels = [], keys.STEM_OUT_CHANNELS
    for number, count in enumerate(_BLOCKS_PER_STAGE[keys.DEPTH]):
        out_channels = keys.RES2_OUT_CHANNELS << number
        common = {"in_channels": in_channels, "out_channels": out_channels, "norm": keys.NORM}
        stages.append(make(keys, number, count, common))
        in_channels = out_channels
    return ResNet(stem, stages, out_features=keys.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _basic_stage(keys: CfgNode, number: int, count: int, common: dict[str, Any]) -> list[CNNBlockBase]:
    """Make stage res<number + 2> of ResNet-18 or 34."""
    for name, value in {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}.items():
        assert keys[name] == value, f"MODEL.RESNETS.{name} is {keys[name]}; ResNet-{keys.DEPTH} needs {value}"
    assert not any(keys.DEFORM_ON_PER_STAGE), f"MODEL.RESNETS.DEFORM_ON_PER_STAGE: not with ResNet-{keys.DEPTH}"
    return make_stage(BasicBlock, count, stride_per_block=_strides(count, number > 0), **common)


def _bottleneck_stage(keys: CfgNode, number: int, count: int, common: dict[str, Any]) -> list[CNNBlockBase]:
    """Make stage res<number + 2> of ResNet-50 or a larger one."""
    dilation = keys.RES5_DILATION if number == 3 else 1
    options = {
        "bottleneck_channels": keys.NUM_GROUPS * keys.WIDTH_PER_GROUP << number,
        "num_groups": keys.NUM_GROUPS,
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "dilation": dilation,
        "stride_per_block": _strides(count, number > 0 and dilation == 1),  # a dilation takes the stride's place
    }
    if not keys.DEFORM_ON_PER_STAGE[number]:
        return make_stage(BottleneckBlock, count, **common, **options)
    options |= {"deform_modulated": keys.DEFORM_MODULATED, "deform_num_groups": keys.DEFORM_NUM_GROUPS}
    return make_stage(DeformBottleneckBlock, count, **common, **options)


def _strides(count: int, halves: bool) -> list[int]:
    return [2 if halves else 1] + [1] * (count - 1)
