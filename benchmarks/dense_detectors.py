"""Training step and inference: our FCOS against Detectron2's own FCOS, our DeFCN against FCOS with NMS.

All sides have the same backbone, the same four GN convolutions per tower, the same images and boxes, and run in
turn: first in PyTorch's default memory order, then in the one of ``MODEL.CHANNELS_LAST``. ``train_ratio`` and
``inference_ratio`` are the other side's time over ours: above 1, ours is faster. Detectron2's own FCOS is in the real
Detectron2 only; with the stand-in that pair is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from d2_ext import add_d2_ext_config

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from side_by_side import medians, write_json
from torch import nn

CLASSES = 80
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
PAIRS = (("FCOS", "Detectron2's FCOS"), ("DeFCN, POTO", "FCOS"), ("DeFCN, POTO + 3DMF", "FCOS"))
ORDERS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
EXAMPLES = """examples:
  python benchmarks/dense_detectors.py
  python benchmarks/dense_detectors.py --size 800 1344 --depth 50 --json results/bench/dense_detectors.json
"""


def config(meta_architecture: str, args: argparse.Namespace, *options: Any) -> CfgNode:
    """Config of one of our detectors, from random weights."""
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = args.depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if args.depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = args.channels
    cfg.merge_from_list(list(options))
    return cfg


def stock_fcos(cfg: CfgNode) -> nn.Module:
    """Detectron2's FCOS, which no config can reach, with our backbone and the inference limits of ours.

    Raises:
        ImportError: with the stand-in.
    """
    from detectron2.modeling.meta_arch.fcos import FCOS as StockFCOS
    from detectron2.modeling.meta_arch.fcos import FCOSHead as StockHead

    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in LEVELS]
    head = StockHead(input_shape=shapes, num_classes=CLASSES, conv_dims=[cfg.MODEL.FPN.OUT_CHANNELS] * 4, norm="GN")
    model = StockFCOS(
        backbone=backbone,
        head=head,
        head_in_features=LEVELS,
        num_classes=CLASSES,
        test_score_thresh=cfg.MODEL.FCOS.SCORE_THRESH_TEST,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    return model.to(cfg.MODEL.DEVICE)


def images(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Random images with ``args.boxes`` objects of 8 to 200 px each."""
    height, width = args.size
    batch = []
    for _ in range(args.batch):
        sizes = (torch.rand(args.boxes, 2) * 3.2 + 2.1).exp()
        corners = torch.rand(args.boxes, 2) * (torch.tensor([width, height]) - sizes).clamp(min=0)
        boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
        boxes.clip((height, width))
        truth = Instances((height, width), gt_boxes=boxes, gt_classes=torch.randint(CLASSES, (args.boxes,)))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "height": height, "width": width, "instances": truth})
    return batch


def confident(model: nn.Module) -> nn.Module:
    """Draw class weights that give more candidates than TOPK_CANDIDATES_TEST on the fine levels.

    So do trained detectors of crowded scenes: FCOS after its quick start has 3000 to 7000 pairs above the threshold.
    """
    head = model.head
    layer = next(getattr(head, name) for name in ("cls_logits", "cls_score") if hasattr(head, name))
    nn.init.normal_(layer.weight, std=0.06)
    return model


def train_step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Forward, losses and backward of one batch."""
    model.train()
    model.zero_grad()
    sum(model(batch).values()).backward()


@torch.no_grad()
def detect(model: nn.Module, batch: list[dict[str, Any]]) -> int:
    """Detections of one batch, and how many there are."""
    model.eval()
    return sum(len(output["instances"]) for output in model(batch))


def compare(
    models: dict[str, nn.Module], batch: list[dict[str, Any]], order: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure all models in one memory order; print and give the rows."""
    models = {name: model.to(memory_format=ORDERS[order]) for name, model in models.items()}
    with EventStorage():
        train = medians(
            {name: lambda m=model: train_step(m, batch) for name, model in models.items()}, repeats=args.repeats
        )
    found = {name: detect(model, batch) for name, model in models.items()}
    inference = medians(
        {name: lambda m=model: detect(m, batch) for name, model in models.items()}, repeats=args.repeats
    )
    rows = []
    for name, other in (pair for pair in PAIRS if pair[1] in models):
        row = {
            "model": name,
            "against": other,
            "order": order,
            "train_ratio": train[other] / train[name],
            "inference_ratio": inference[other] / inference[name],
            "train_ms": 1000 * train[name],
            "inference_ms": 1000 * inference[name],
            "detections": found[name],
            "setting": {key: getattr(args, key) for key in ("size", "batch", "boxes", "depth", "channels", "device")},
        }
        rows.append(row)
        print(
            f"{name:20} {order:13} {row['train_ms']:7.0f} ms {row['inference_ms']:9.0f} ms   {other:18}"
            f"{row['train_ratio']:7.2f} {row['inference_ratio']:10.2f} {row['detections']:12}"
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=50, help="per image")
    parser.add_argument("--depth", type=int, default=18, choices=[18, 34, 50, 101])
    parser.add_argument("--channels", type=int, default=256, help="of the pyramid")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    models = {}
    try:
        models["Detectron2's FCOS"] = stock_fcos(config("FCOS", args))
    except ImportError:
        print("Detectron2 is not installed: our FCOS is not compared with its own")
    models |= {
        "FCOS": build_model(config("FCOS", args)),
        "DeFCN, POTO": build_model(config("DeFCN", args)),
        "DeFCN, POTO + 3DMF": build_model(config("DeFCN", args, "MODEL.DEFCN.FILTER.ENABLED", True)),
    }
    models = {name: confident(model) for name, model in models.items()}
    batch = images(args)
    columns = f"{'model':20} {'order':13} {'train':>10} {'inference':>12}   {'against':18}"
    print(f"{columns}  train  inference   detections")
    rows = [row for order in ORDERS for row in compare(models, batch, order, args)]
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
