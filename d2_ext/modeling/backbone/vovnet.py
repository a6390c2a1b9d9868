"""VoVNet: backbones of one-shot aggregation blocks.

Papers: An Energy and GPU-Computation Efficient Backbone Network (V1, arXiv:1904.09730); CenterMask (V2 with eSE,
arXiv:1911.06667, section 3.3).
Checked against: outputs, parameter counts and state-dict names of the authors' vovnet-detectron2 and VoVNet.pytorch.
Differs: stages behind the last requested feature are not built; norms are frozen only in the frozen stages, unless
``freeze_all_norms`` asks for the published behavior; module names have no slashes, state dicts have (vovnet_names.py).

Every OSA block of V2 has a gate, as in the published weights; timm gates only the last block of a stage
(``ese_last_only``). Blocks after the first of a stage add their input behind the gate, in V1 too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.blocks import BlockSequence
from d2_ext.layers.deform import DeformUnit, no_offsets
from d2_ext.layers.norms import NormSpec, make_norm
from d2_ext.modeling.backbone.trunk import Trunk
from d2_ext.modeling.backbone.vovnet_names import module_name, published_name

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

STAGES = (2, 3, 4, 5)


@dataclass(frozen=True)
class VoVNetSpec:
    """Sizes of one body.

    Attributes:
        stem: output channels of the stem's convolutions, three as published or two; the first and last have stride 2.
        widths: channels of the 3x3 convolutions inside the blocks of stages 2 to 5.
        outs: channels of the stages' outputs.
        layers: 3x3 convolutions per block.
        blocks: blocks per stage.
        depthwise: separable convolutions, as in the ``dw`` bodies.
        ese: effective squeeze-and-excitation in every block (V2).
    """

    stem: tuple[int, ...]
    widths: tuple[int, int, int, int]
    outs: tuple[int, int, int, int]
    layers: int
    blocks: tuple[int, int, int, int]
    depthwise: bool = False
    ese: bool = True


_V19 = VoVNetSpec((64, 64, 128), (128, 160, 192, 224), (256, 512, 768, 1024), layers=3, blocks=(1, 1, 1, 1))
_V19_SLIM = replace(_V19, widths=(64, 80, 96, 112), outs=(112, 256, 384, 512))
_V39 = replace(_V19, layers=5, blocks=(1, 1, 2, 2))
_V57 = replace(_V39, blocks=(1, 1, 4, 3))

VOVNET_SPECS: Mapping[str, VoVNetSpec] = MappingProxyType(
    {
        "V-19-slim-dw-eSE": replace(_V19_SLIM, stem=(64, 64, 64), depthwise=True),
        "V-19-dw-eSE": replace(_V19, stem=(64, 64, 64), depthwise=True),
        "V-19-slim-eSE": _V19_SLIM,
        "V-19-eSE": _V19,
        "V-39-eSE": _V39,
        "V-57-eSE": _V57,
        "V-99-eSE": replace(_V39, blocks=(1, 3, 9, 3)),
        # Ours, for CPUs and small boards; plain convolutions, since separable ones train no faster on a CPU. The V-22
        # bodies have multiples of 16 channels, the block in which CPUs compute (24 cost what 32 do), a single
        # convolution with an output of stride 2, and no gates: a gate makes a runtime write the map in another order,
        # and once more.
        "V-22-nano": VoVNetSpec(
            (16, 32), (16, 32, 48, 64), (48, 96, 160, 208), layers=3, blocks=(1, 1, 2, 1), ese=False
        ),
        "V-22-lite": VoVNetSpec(
            (16, 32), (32, 48, 64, 96), (64, 128, 256, 320), layers=3, blocks=(1, 1, 2, 1), ese=False
        ),
        "V-23-lite-eSE": VoVNetSpec((24, 24, 32), (32, 48, 64, 96), (64, 128, 256, 320), layers=3, blocks=(1, 1, 2, 1)),
        "V-27-slim": replace(_V19_SLIM, outs=(128, 256, 384, 512), layers=5, ese=False),
        "V-39": replace(_V39, ese=False),
        "V-57": replace(_V57, ese=False),
    }
)


def conv_unit(in_channels: int, out_channels: int, kernel: int, norm: NormSpec, stride: int = 1) -> Conv2d:
    """Convolution of an odd kernel that keeps the size (at stride 1), norm and ReLU."""
    norm_layer = make_norm(norm, out_channels)
    return Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=norm_layer is None,
        norm=norm_layer,
        activation=nn.ReLU(inplace=True),  # on the fresh output of the norm
    )


def separable_unit(channels: int, norm: NormSpec, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3 and, with nothing between them, a 1x1 convolution; then norm and ReLU."""
    depthwise = Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(OrderedDict(dw=depthwise, pw=conv_unit(channels, channels, 1, norm)))


class EffectiveSqueezeExcitation(nn.Module):
    """Channel gate of V2: hard sigmoid of one 1x1 convolution of the global average (arXiv:1911.06667, Eq. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class OSABlock(nn.Module):
    """One-shot aggregation: a chain of 3x3 units whose outputs, and the input, are concatenated once.

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 units.
        out_channels: channels of the output.
        spec: ``layers`` and ``depthwise`` of the body.
        norm: see ``make_norm``.
        identity: add the input to the output, behind the gate.
        ese: end in a gate.
        deform: arguments of ``DeformUnit`` if the 3x3 convolutions are deformable, else None.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        spec: VoVNetSpec,
        norm: NormSpec,
        identity: bool,
        ese: bool,
        deform: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        reduce = spec.depthwise and in_channels != width
        first = width if reduce else in_channels
        inputs = (first, *(width,) * (spec.layers - 1))
        if spec.depthwise:
            self.layers = nn.ModuleList(separable_unit(c, norm) for c in inputs)
        elif deform is not None:
            self.layers = nn.ModuleList(
                DeformUnit(c, width, norm=make_norm(norm, width), activation=nn.ReLU(inplace=True), **deform)
                for c in inputs
            )
        else:
            self.layers = nn.ModuleList(conv_unit(c, width, 3, norm) for c in inputs)
        self.reduction = conv_unit(in_channels, width, 1, norm) if reduce else None
        self.concat = conv_unit(in_channels + spec.layers * width, out_channels, 1, norm)
        self.ese = EffectiveSqueezeExcitation(out_channels) if ese else None
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, Cin, H, W) to (N, Cout, H, W)."""
        y = self.concat(self._aggregate(x))
        if self.ese is not None:
            y = self.ese(y)
        return y + x if self.identity else y

    def _aggregate(self, x: Tensor) -> Tensor:
        """Concatenate the un-reduced input and the outputs of all 3x3 units, in this order."""
        h = x if self.reduction is None else self.reduction(x)
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            kept = [x]
            for layer in self.layers:
                h = layer(h)
                kept.append(h)
            return torch.cat(kept, dim=1)
        # Without gradients each output is written into its place at once, so that only the newest one is alive twice.
        start, joined = x.shape[1], x
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if number == 0:  # now dtype and memory order of the outputs are known
                channels_last = h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()
                joined = torch.empty(
                    (x.shape[0], self.concat.in_channels, *x.shape[-2:]),
                    dtype=torch.promote_types(x.dtype, h.dtype),
                    device=x.device,
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format,
                )
                joined[:, :start] = x
            joined[:, start : start + h.shape[1]] = h
            start += h.shape[1]
        return joined


class OSAStage(BlockSequence):
    """Blocks behind a 3x3 max-pool of stride 2 without padding that keeps border cells: a side n becomes n // 2."""

    def __init__(self, blocks: Sequence[OSABlock], *, pool: bool, recompute: bool) -> None:
        super().__init__(blocks, recompute=recompute)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, 3, stride=2, ceil_mode=True) if self.pool else x)


class VoVNet(Trunk):
    """VoVNet V1 and V2; features ``stem`` (stride 4) and ``stage2`` to ``stage5`` (strides 4, 8, 16, 32).

    Args:
        body: a name in ``VOVNET_SPECS``, or a spec.
        in_channels: channels of the images.
        norm: see ``make_norm``.
        out_features: features to return; stages behind the last one are not built.
        freeze_at: number of leading parts to freeze: 1 the stem, 2 stem and stage2, ...
        freeze_all_norms: freeze the batch norms of all stages if ``freeze_at >= 1``, as the published code does.
        ese_last_only: gate only the last block of a stage, to load timm's weights of 39b, 57b and 99b.
        stage_with_dcn: for each of stages 2 to 5, whether its 3x3 convolutions are deformable.
        modulated_dcn: version 2 of deformable convolutions.
        deformable_groups: groups of channels that share their offsets.
        recompute: recompute the blocks' activations in the backward pass to save memory.
        num_classes: adds a classifier and its feature ``logits``.

    Raises:
        ConfigError: for an unknown body, norm or feature, or deformable convolutions in a depthwise body.

    Example:
        >>> trunk = VoVNet(body="V-19-slim-dw-eSE", out_features=["stage3"]).eval()
        >>> trunk(torch.zeros(1, 3, 64, 96))["stage3"].shape
        torch.Size([1, 256, 8, 12])
    """

    @configurable
    def __init__(
        self,
        *,
        body: str | VoVNetSpec = "V-39-eSE",
        in_channels: int = 3,
        norm: NormSpec = "FrozenBN",
        out_features: Sequence[str] = ("stage2", "stage3", "stage4", "stage5"),
        freeze_at: int = 0,
        freeze_all_norms: bool = False,
        ese_last_only: bool = False,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        modulated_dcn: bool = False,
        deformable_groups: int = 1,
        recompute: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        spec = self._spec(body, stage_with_dcn)
        self._deformable = {stage for stage, dcn in zip(STAGES, stage_with_dcn) if dcn}
        options = {"modulated": modulated_dcn, "groups": deformable_groups}
        wanted = self.wanted_parts(out_features, num_classes)
        self.stem = self._make_stem(spec, in_channels, norm)
        self._add_part("stem", ["stem"], channels=spec.stem[-1], stride=4)
        for index, part in enumerate(wanted[1:]):
            in_channels, out_channels, count = self.last_shape.channels, spec.outs[index], spec.blocks[index]
            blocks = [
                OSABlock(
                    out_channels if j else in_channels,
                    spec.widths[index],
                    out_channels,
                    spec=spec,
                    norm=norm,
                    identity=j > 0,
                    ese=spec.ese and (j == count - 1 or not ese_last_only),
                    deform=options if STAGES[index] in self._deformable else None,
                )
                for j in range(count)
            ]
            setattr(self, part, OSAStage(blocks, pool=index > 0, recompute=recompute))
            self._add_part(part, [part], channels=out_channels, stride=4 * 2**index)
        if "logits" in out_features and num_classes is not None:
            self._add_classifier("classifier", num_classes)
        self._finish(out_features, num_classes)
        # The stem makes ceil(n / 4) of a side n, and each pool needs at least 2 pixels.
        pools = max(len(wanted) - 2, 0)
        self._min_side = 4 * (2**pools - 1) + 1
        # Kaiming normal, fan-in, gain of ReLU, on every convolution; offsets of deformable units stay zero.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformUnit):
                no_offsets(module.conv_offset)
        self.freeze(freeze_at)
        if freeze_all_norms and freeze_at >= 1:
            self.freeze_norms()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read ``MODEL.VOVNET`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.VOVNET
        for key in ("OUT_CHANNELS", "BACKBONE_OUT_CHANNELS"):
            if node[key] != 256:
                raise ConfigError(
                    f"MODEL.VOVNET.{key} is {node[key]}, but published configs never use it (default 256). "
                    "Set the width of the pyramid with MODEL.FPN.OUT_CHANNELS."
                )
        return {
            "body": node.CONV_BODY,
            "in_channels": 3 if input_shape is None or input_shape.channels is None else input_shape.channels,
            "norm": node.NORM,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "freeze_all_norms": node.FREEZE_ALL_NORMS,
            "ese_last_only": node.ESE_LAST_ONLY,
            "stage_with_dcn": node.STAGE_WITH_DCN,
            "modulated_dcn": node.WITH_MODULATED_DCN,
            "deformable_groups": node.DEFORMABLE_GROUPS,
            "recompute": node.RECOMPUTE,
        }

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        return ("stem", *(f"stage{stage}" for stage in STAGES))

    @property
    def size_divisibility(self) -> int:
        """Sides are rounded down from stage3 on, so pad to whole cells of the last stage."""
        return self.last_shape.stride

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """State under the published names; with ``keep_vars`` (live variables) under the names of the modules."""
        state = super().state_dict(*args, **kwargs)
        if not kwargs.get("keep_vars", False):
            prefix = kwargs.get("prefix", "")
            for key in [k for k in state if k.startswith(prefix)]:  # re-inserted in their order
                state[prefix + published_name(key.removeprefix(prefix))] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept published names beside those of the modules."""
        for key in [k for k in state_dict if k.startswith(prefix)]:
            name = prefix + module_name(key.removeprefix(prefix), self._deformable)
            if name != key:
                state_dict[name] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _spec(body: str | VoVNetSpec, stage_with_dcn: Sequence[bool]) -> VoVNetSpec:
        if isinstance(body, str) and body not in VOVNET_SPECS:
            raise ConfigError(f"MODEL.VOVNET.CONV_BODY: no body {body!r}. {did_you_mean(body, VOVNET_SPECS)}")
        spec = VOVNET_SPECS[body] if isinstance(body, str) else body
        if len(stage_with_dcn) != len(STAGES):
            raise ConfigError(
                f"MODEL.VOVNET.STAGE_WITH_DCN has {len(stage_with_dcn)} values, but wants one for each of 4 stages."
            )
        if spec.depthwise and any(stage_with_dcn):
            raise ConfigError(
                "MODEL.VOVNET.STAGE_WITH_DCN: depthwise bodies have no 3x3 convolutions to deform. "
                "Set it to (False, False, False, False), or choose a body without 'dw'."
            )
        return spec

    @staticmethod
    def _make_stem(spec: VoVNetSpec, in_channels: int, norm: NormSpec) -> nn.Sequential:
        units: list[nn.Module] = [conv_unit(in_channels, spec.stem[0], 3, norm, stride=2)]
        for number, (inputs, outputs) in enumerate(pairwise(spec.stem), 2):
            stride = 2 if number == len(spec.stem) else 1
            if spec.depthwise:  # a depthwise convolution keeps its channels
                units.append(separable_unit(inputs, norm, stride=stride))
            else:
                units.append(conv_unit(inputs, outputs, 3, norm, stride=stride))
        return nn.Sequential(*units)
