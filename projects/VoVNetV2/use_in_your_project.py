"""Use a backbone of d2_ext in any Detectron2 project: with explicit arguments, from a config, or from a lazy config.

Run it with ``python projects/VoVNetV2/use_in_your_project.py``; it needs no weights and no data. With the ImageNet
weights of the authors, or of timm: ``--weights FILE --source vovnet``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import d2_ext  # comes first: it makes `detectron2` importable and registers the backbones
from d2_ext.checkpoint import convert
from d2_ext.layers.fold import fold_norms
from d2_ext.modeling.backbone import VoVNet

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn


def from_arguments() -> nn.Module:
    """The trunk alone; stages behind the last feature are not even built."""
    return VoVNet(body="V-19-slim-dw-eSE", norm="FrozenBN", out_features=["stage3", "stage4"], freeze_at=1)


def from_config() -> nn.Module:
    """With a pyramid, as ``MODEL.BACKBONE.NAME`` of a YAML file would."""
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_vovnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.VOVNET.CONV_BODY = "V-19-slim-dw-eSE"
    cfg.MODEL.VOVNET.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["stage3", "stage4", "stage5"]
    return build_backbone(cfg)


def from_lazy_config() -> nn.Module:
    """The same pyramid from Python; lazy configs need an installed Detectron2."""
    from detectron2.config import LazyCall, instantiate
    from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7

    features = ["stage3", "stage4", "stage5"]
    return instantiate(
        LazyCall(FPN)(
            bottom_up=LazyCall(VoVNet)(body="V-19-slim-dw-eSE", out_features=features),
            in_features=features,
            out_channels=256,
            top_block=LazyCall(LastLevelP6P7)(in_channels=512, out_channels="${..out_channels}", in_feature="stage5"),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build the backbone in each way and print its features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="ImageNet weights of V-19-slim-dw-eSE, a .pth file")
    parser.add_argument("--source", default="vovnet", help="whose names they have (default: %(default)s)")
    args = parser.parse_args(argv)
    ways = [from_arguments, from_config]
    if d2_ext.ensure_detectron2() == "stock":
        ways.append(from_lazy_config)
    for way in ways:
        backbone = way().eval()
        if args.weights:
            weights = convert(torch.load(args.weights, map_location="cpu", weights_only=True), source=args.source)
            getattr(backbone, "bottom_up", backbone).load_state_dict(weights, strict=False)
        fast = fold_norms(backbone)  # for inference only: the same results, faster
        with torch.no_grad():
            features = fast(torch.rand(1, 3, 128, 192))
        print(f"{way.__name__}:")
        for name, shape in backbone.output_shape().items():
            print(f"  {name}: stride {shape.stride}, {tuple(features[name].shape)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
